"""Fuzzing, kill series and the soak test; not part of the wheel."""
