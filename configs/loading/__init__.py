"""From YAML text to `Settings`, with every error at once, and the reference page of all settings."""
