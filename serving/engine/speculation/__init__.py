"""Speculation inside SGLang: a registered algorithm whose depth changes between steps."""
