"""Starts, watches and ends processes: Ray, replicas, and the run they belong to."""
