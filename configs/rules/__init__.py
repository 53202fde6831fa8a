"""Rules between settings: each broken one is a problem with rule, value and cure."""
