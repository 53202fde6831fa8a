"""The DSpark draft model: configuration, layers, heads, checkpoints, and the calibration of its edges."""
