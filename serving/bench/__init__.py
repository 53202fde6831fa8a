"""Benchmarks that an operator runs on a configuration: they start it, load it and report its speed."""
