"""Noise keyed by seed and position: samplers and seeds of choices."""
