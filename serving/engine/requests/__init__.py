"""Hooks around single requests inside SGLang: limits, grammars, faults that end one request alone."""
