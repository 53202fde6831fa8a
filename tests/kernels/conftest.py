"""Hypothesis for these tests: the same examples on every run, and no deadline on a shared machine."""

from hypothesis import settings

settings.register_profile("kernels", deadline=None, derandomize=True)
settings.load_profile("kernels")
