"""One request as a transport hands it to the core."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sparktier.serving.gateway.requests.rules import CHAT
from sparktier.serving.gateway.tenants.directory import Tenant
from sparktier.serving.gateway.tier_resolution import TierAsk


class Kind(StrEnum):
    """What is asked for; the value is the replica's route."""

    COMPLETION = "/v1/completions"
    CHAT = CHAT


@dataclass(frozen=True)
class Ask:
    """A request whose sender is known.

    `request_id` is what the client knows it by; clients may repeat ids. `deadline_s` and `received_s` are on the event
    loop's clock.
    """

    kind: Kind
    body: Mapping[str, Any] = field(repr=False)
    tier: TierAsk
    tenant: Tenant
    request_id: str
    deadline_s: float
    traceparent: str | None = None
    received_s: float = field(default_factory=time.monotonic)

    @property
    def streams(self) -> bool:
        """Whether the answer comes piece by piece."""
        return self.body.get("stream") is True
