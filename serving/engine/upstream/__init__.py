"""SGLang internals in use, with hashes of their source; start-up refuses another version."""
