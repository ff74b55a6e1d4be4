"""Benchmarks: each is run as `python benchmarks/NAME.py [--check] [--json FILE]`."""
