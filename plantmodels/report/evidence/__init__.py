"""Computes every number of a report from its evidence: the image rows, the samples and the sizes of the files."""
