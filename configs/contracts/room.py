"""`Room`, from a replica to the gateways: how many more users it takes. Headers say what a request brings and found."""

from collections.abc import Mapping

from sparktier.configs.contracts.message import Count, Message
from sparktier.configs.settings.tiers import TierId

TIER_HEADER = "x-sparktier-tier-id"
"""Where the gateway tells a replica a request's tier."""
USERS_HEADER = "x-sparktier-users"
"""Where it tells how many users the request brings. A request without both headers is not counted."""
ROOM_HEADER, NO_ROOM = "x-sparktier-room", "none"
"""What a replica's refusal (503) has where it has no room; its body is a `Room`."""


class Room(Message):
    """How many more users of each tier a replica takes under its plan; `seq` rises with each message.

    `caps` are the most that it would have. A tier that is not listed has no bound, or is served as the default one.
    """

    seq: Count
    plan_version: Count
    room: Mapping[TierId, Count]
    caps: Mapping[TierId, Count] = {}
