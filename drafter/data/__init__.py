"""The training data of a drafter: prompts, answers, the target's features, and the packing of samples."""
