"""Decides, across replicas, what speculation depth each may spend, and where ranks are placed.

Pure policy; imports without torch. Ray stands in `placement.py` alone.
"""
