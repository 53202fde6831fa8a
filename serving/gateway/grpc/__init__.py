"""gRPC over the core: `sparktier.v1`, health and reflection."""
