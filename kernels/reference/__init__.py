"""Slow references of the kernels, for tests."""
