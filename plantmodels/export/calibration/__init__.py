"""Calibrates a bundle: which leaves say how it does on fresh ones, and the temperatures that they give."""
