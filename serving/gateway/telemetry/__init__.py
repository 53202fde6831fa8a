"""What the gateway shows of its requests: spans, metrics and log lines, never a prompt or a key."""
