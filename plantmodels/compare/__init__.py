"""Compares the gate reports of two verified bundles."""
