"""Benchmarks of the gate report: how long reading takes, and its page with hundreds of species."""
