"""Loads YAML text as `Settings`, reports every error at once, and writes the reference page of all settings."""
