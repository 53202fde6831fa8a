"""Trains a drafter: losses, optimiser, schedule, runs and their checkpoints."""
