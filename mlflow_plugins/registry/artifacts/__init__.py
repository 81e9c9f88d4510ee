"""The files of a model where they are stored: listed once, and each read once."""
