"""Checks a version before any of its code runs."""
