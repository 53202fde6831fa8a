"""What every part of sparktier may import: settings, the error tree, the contracts between parts, and the YAML files.

Imports nothing else of sparktier, and no torch, Ray or SGLang.
"""
