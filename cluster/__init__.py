"""Decides the speculation depth of each replica and where its ranks are placed.

Pure policy; imports without torch. Only `placement.py` imports Ray.
"""
