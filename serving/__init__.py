"""Meets SGLang below (`engine/`) and users above: command line, front, supervision.

The composition root: may import every other part; nothing imports it.
"""
