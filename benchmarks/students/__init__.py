"""Benchmarks of what a small student can do: rejection, the bytes of its file, and rivals."""
