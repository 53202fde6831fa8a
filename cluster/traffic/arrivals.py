"""Who sends each request: tenants and tiers, drawn by one rule, so that all policies meet the same arrivals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparktier.cluster.traffic.requests import Requests


class Arrival(NamedTuple):
    """One request that is offered, whatever becomes of it. `tier` is an id; `prefix` and `session` as in Requests."""

    at_ms: float
    tenant: str
    tier: int
    prompt_tokens: int
    output_tokens: int
    prefix: tuple[int, ...]
    session: int


class Share(NamedTuple):
    """A tenant's users of a tier; `weight` over the sum of all weights is their part of the sessions."""

    tenant: str
    tier: int
    weight: float


def arrivals(requests: Requests, shares: Sequence[Share], *, seed: int) -> list[Arrival]:
    """Return the requests with tenant and tier.

    The rule: sessions in the order of their first requests draw one number each from [0, 1); it falls into one of the
    shares, laid side by side in their order. So other shares change neither times nor lengths, and a session keeps its
    tenant and tier. Only BurstGPT's traces tell sessions: requests of others that share a prefix may have several
    tenants.
    """
    _, first, session = np.unique(requests.session, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    bounds = np.cumsum([share.weight for share in shares])
    numbers = np.random.default_rng([seed, 3]).random(len(first))
    # Rounding could put the last bound below a number.
    chosen = np.minimum(np.searchsorted(bounds / bounds[-1], numbers, side="right"), len(shares) - 1)
    found = zip(
        requests.at_ms.tolist(),
        chosen[place[session]].tolist(),
        requests.prompt_tokens.tolist(),
        requests.output_tokens.tolist(),
        requests.prefixes,
        requests.session.tolist(),
        strict=True,
    )
    return [Arrival(at_ms, *shares[share][:2], *rest) for at_ms, share, *rest in found]
