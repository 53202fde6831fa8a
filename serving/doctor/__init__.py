"""Checks of this machine and of a configuration, with a cure for each failure."""
