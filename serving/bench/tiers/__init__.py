"""What tiers are worth: policies compared in virtual time."""
