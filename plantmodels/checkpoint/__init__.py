"""Reads the files that hold a trained network, and runs nothing that they name."""
