"""The gateway as a process of its own, before replicas that others run."""
