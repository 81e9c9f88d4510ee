"""The demo's data set, which the program draws itself, and a checkpoint trained on it."""
