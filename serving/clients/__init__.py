"""Clients of replicas: addresses, keys, timeouts, and the map from transport errors to ours."""
