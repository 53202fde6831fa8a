"""Benchmarks that an operator runs against a real deployment of a configuration.

Owns starting it, load, and reports.
"""
