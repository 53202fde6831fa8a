"""HTTP over the core: the listener for clients and the one for operators."""
