"""The controller as a process: its lease, its log of decisions, and its routes."""
