"""The DSpark draft model and its life: data, training, evaluation, calibration, checkpoints; from a block to a tree."""
