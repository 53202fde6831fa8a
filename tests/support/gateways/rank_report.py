"""What a rank that serves tells of itself, for stand-ins of replicas."""

RANK = {
    "rank": 0,
    "pid": 7,
    "node": "10.0.0.1",
    "platform": "cpu",
    "threads": 1,
    "vocab_size": 512,
    "context_tokens": 256,
    "token_characters": 12,
    "moe_layers": 2,
    "experts": 8,
    "local_experts": [0, 7],
}
