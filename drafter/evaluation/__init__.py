"""Measures a drafter on stored answers: accepted length, calibration error, comparisons, plots."""
