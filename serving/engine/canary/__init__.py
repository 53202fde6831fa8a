"""The losslessness canary: scores emitted tokens by a plain prefill, and latches where they are wrong too often."""
