"""Whether threshold and p-values keep what they promise on fresh leaves: `python -m benchmarks.calibration`."""
