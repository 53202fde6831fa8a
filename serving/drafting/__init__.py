"""Bodies of the drafter's commands: train, evaluate, calibrate, and their sources."""
