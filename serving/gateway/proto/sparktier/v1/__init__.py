"""The definition of the gRPC API, and the messages that are generated from it."""
