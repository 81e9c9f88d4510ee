"""Fits, selects and compares out-of-distribution detectors on embeddings."""
