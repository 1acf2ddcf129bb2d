"""Benchmarks as version-controlled experiments: `python -m benchmarks.<name>` prints a table and writes its result."""
