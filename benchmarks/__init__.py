"""The measurements behind the published figures; see `python -m benchmarks --help` and README.md in this folder."""
