"""Checks a model version completely before any of its code runs."""
