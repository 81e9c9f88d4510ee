"""The one file: a graph from an image's tensor to the whole answer, for runtimes without this package."""
