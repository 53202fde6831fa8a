"""The seed of each request: the one it brings, or one derived from its id."""

import hashlib


def seed_of(request_id: str, sampling_seed: int | None) -> int:
    """Return the seed that the request brings, or one derived from its id, which is the same on every rank."""
    if sampling_seed is not None:
        return sampling_seed
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
