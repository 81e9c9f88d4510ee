"""Benchmarks of a student: the bytes of its file, and its rivals."""
