"""Fuzzing, series of kills and the soak test; not part of the wheel."""
