"""Hooks in SGLang for single requests: limits, grammars, and faults that end one request only."""
