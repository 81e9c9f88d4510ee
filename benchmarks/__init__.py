"""What the README's figures are made by; `python -m benchmarks --help`, and README.md in this folder."""
