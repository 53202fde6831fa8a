"""Speculation inside SGLang: a registered algorithm whose depth changes between steps.

Knows nothing of who decides the depth: a plan arrives as numbers, and is read back in signals.
"""
