"""A small data set that the program draws itself, and a checkpoint trained on it: something to try the line on."""
