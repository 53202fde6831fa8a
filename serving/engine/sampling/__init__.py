"""Sampling with noise keyed by seed and position, and the seeds of requests and their choices."""
