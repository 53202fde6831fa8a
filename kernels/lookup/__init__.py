"""Prompt lookup: drafts from a request's own context, what they are worth, and how they join a drafter's."""
