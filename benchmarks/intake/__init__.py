"""How fast many images are scored and many files are read: `python -m benchmarks.intake`."""
