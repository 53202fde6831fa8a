"""What a drafter learns from: prompts, answers, the target's features, and how samples are packed."""
