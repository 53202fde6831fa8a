"""Requests that wait at the gateways: by tier in the order of their arrival, gateways taking turns."""

from collections import OrderedDict
from collections.abc import Mapping

from sparktier.cluster.policy.policy_types import TierRule


class Queues:
    """A queue for each tier and gateway. A request comes to the gateway that its number says."""

    def __init__(self, tiers: Mapping[int, TierRule], gateways: int) -> None:
        self._waiting: dict[int, list[OrderedDict[int, None]]] = {
            tier: [OrderedDict() for _ in range(gateways)] for tier in tiers
        }
        self._turn = dict.fromkeys(tiers, 0)
        self.tiers = sorted(tiers, key=lambda tier: (-(tiers[tier].promise_tok_s or 0.0), tier))
        """The highest promise first."""

    def put(self, number: int, tier: int) -> None:
        """Let a request wait."""
        queues = self._waiting[tier]
        queues[number % len(queues)][number] = None

    def waits(self, tier: int) -> bool:
        """Return whether any request of `tier` waits."""
        return any(self._waiting[tier])

    def first(self, tier: int) -> int | None:
        """Return the request whose turn it is; None if none waits."""
        queues = self._waiting[tier]
        for ahead in range(len(queues)):
            queue = queues[(self._turn[tier] + ahead) % len(queues)]
            if queue:
                return next(iter(queue))
        return None

    def remove(self, number: int, tier: int) -> bool:
        """Take a request out; False if it doesn't wait."""
        queues = self._waiting[tier]
        place = number % len(queues)
        if number not in queues[place]:
            return False
        del queues[place][number]
        self._turn[tier] = (place + 1) % len(queues)
        return True

    def numbers(self) -> dict[int, list[int]]:
        """Return all that wait, by tier."""
        return {tier: [number for queue in queues for number in queue] for tier, queues in self._waiting.items()}
