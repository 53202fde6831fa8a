"""The seed of each request: its own, or one that every rank can make of its id."""

import hashlib


def seed_of(request_id: str, sampling_seed: int | None) -> int:
    """Return the seed of a request: its own, or one made of its id, which every rank knows."""
    if sampling_seed is not None:
        return sampling_seed
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
