"""The demo drafter's recipe, its prompts, and the drafter itself (`draft/`)."""
