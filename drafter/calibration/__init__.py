"""Fits calibrators of a drafter: the confidence head, its temperatures, acceptance of children."""
