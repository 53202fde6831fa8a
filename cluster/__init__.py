"""Decides, across replicas, what speculation depth each may spend, and where ranks are placed.

Pure policy; imports without torch. Only `placement.py` imports Ray.
"""
