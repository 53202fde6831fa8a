"""Features of the target for a trainer, made by plain prefill of stored token ids (docs/trainer-engine.md).

Rank 0 (`capture`) sends what SGLang captured to the replica's HTTP process (`inbox`), whose `routes` answer the
trainer.
"""
