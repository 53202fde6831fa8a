"""The HTTP front: checks requests, forwards them to replicas, relays answers."""
