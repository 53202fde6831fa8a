"""What the console shows: signals of replicas, the controller's state and decisions, the gateway's own requests.

A part that doesn't answer is shown with the reason; the others go on.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from sparktier.configs.contracts.latch import LatchOrder
from sparktier.configs.contracts.message import Message
from sparktier.configs.contracts.order import ReplicaOrder
from sparktier.configs.errors import ContractError, ReplicaError
from sparktier.configs.settings.tiers import TierSettings
from sparktier.serving.clients.replica import OK, AsyncReplicaClient
from sparktier.serving.clients.replica_admin import ReplicaAdmin
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.gateway.telemetry.open_requests import OpenRequests

# Within this time every page gets the same answer, so that many don't ask replicas more often.
_FRESH_S = 1.0
_TIMEOUT_S = 3.0
_MOST_DECISIONS = 300
OBJECTIVE_FRAC = 0.99
"""Part of the requests of a tier that is to meet its promise; what may miss it is the error budget."""
_NO_CONTROLLER = "This deployment runs no controller (controller.enabled)."


class Sources:
    """Asks with the admin key by `client`. `controller` returns the controller's address, None where there is none."""

    def __init__(
        self,
        table: ReplicaTable,
        client: AsyncReplicaClient,
        *,
        tiers: Callable[[], Mapping[int, TierSettings]],
        controller: Callable[[], str | None],
        requests: OpenRequests,
    ) -> None:
        self._table, self._client, self._admin = table, client, ReplicaAdmin(client)
        self._tiers, self._controller, self._requests = tiers, controller, requests
        self._lock = asyncio.Lock()
        self._made_s = -_FRESH_S
        self._state: dict[str, Any] = {}

    async def state(self) -> dict[str, Any]:
        """Return everything but decisions, as it is now."""
        async with self._lock:
            if time.monotonic() - self._made_s >= _FRESH_S:
                controller, *replicas = await asyncio.gather(
                    self._controller_state(), *map(self._replica_state, self._table.replicas)
                )
                self._state = {
                    "at_ms": round(time.time() * 1000),
                    "objective_frac": OBJECTIVE_FRAC,
                    "controller": controller,
                    "tiers": [_tier(tier_id, tier) for tier_id, tier in sorted(self._tiers().items())],
                    "replicas": replicas,
                    "requests": self._requests.rows(),
                }
                self._made_s = time.monotonic()
            return self._state

    async def decisions(self, after: int) -> dict[str, Any]:
        """Return the last lines of the controller's log after number `after`, or why there are none."""
        url = self._controller()
        if url is None:
            return {"lines": [], "error": _NO_CONTROLLER}
        try:
            answer = await self._client.ask("GET", f"{url}/sparktier/decisions?after={after}", timeout_s=_TIMEOUT_S)
        except (ReplicaError, TimeoutError) as error:
            return {"lines": [], "error": _away(error)}
        if answer.status != OK:
            return {"lines": [], "error": f"The controller answers {answer.status}: {answer.text:.200}"}
        lines = answer.text.splitlines()[-_MOST_DECISIONS:]
        return {"lines": [json.loads(line) for line in lines], "error": None}

    async def latch(self, replica_id: str, order: LatchOrder) -> str | None:
        """Have a replica take `order`; return why not, or None. Raises ReplicaError where it doesn't answer."""
        replica = next((each for each in self._table.replicas if _id(each) == replica_id), None)
        if replica is None or not replica.state.has_ready_engine:
            return f"no replica {replica_id} runs"
        self._made_s = -_FRESH_S
        return await self._admin.latch(replica.url, order)

    async def order(self, order: ReplicaOrder) -> str | None:
        """Have the controller take `order`; return why not, or None. Raises ReplicaError where it doesn't answer."""
        url = self._controller()
        if url is None:
            return _NO_CONTROLLER
        self._made_s = -_FRESH_S
        body = _as_json(order)
        answer = await self._client.ask("POST", f"{url}/sparktier/orders", timeout_s=_TIMEOUT_S, json=body)
        return None if answer.status == OK else f"{answer.text:.300}"

    async def _controller_state(self) -> dict[str, Any]:
        url = self._controller()
        if url is None:
            return {"enabled": False, "error": _NO_CONTROLLER}
        try:
            answer = await self._client.ask("GET", f"{url}/sparktier/state", timeout_s=_TIMEOUT_S)
        except (ReplicaError, TimeoutError) as error:
            return {"enabled": True, "error": _away(error)}
        if answer.status != OK:
            return {"enabled": True, "error": f"The controller answers {answer.status}: {answer.text:.200}"}
        return {"enabled": True, "error": None, **json.loads(answer.content)}

    async def _replica_state(self, replica: Replica) -> dict[str, Any]:
        shown = {"id": _id(replica), "life": replica.state.value, "in_flight": replica.in_flight}
        if not replica.state.has_ready_engine:
            return {**shown, "signals": None, "error": f"The replica is {replica.state.value}."}
        try:
            signals = await self._admin.signals(replica.url)
        except (ReplicaError, ContractError, TimeoutError) as error:
            return {**shown, "signals": None, "error": str(error) or "no answer in time"}
        return {**shown, "signals": _as_json(signals), "error": None}


def _id(replica: Replica) -> str:
    return f"replica-{replica.number}"


def _tier(tier_id: int, tier: TierSettings) -> dict[str, Any]:
    fields = {"name", "promise_tok_s", "ttft_ms", "weight", "default"}
    return {"id": tier_id, **tier.model_dump(mode="json", include=fields)}


def _as_json(message: Message) -> dict[str, Any]:
    return message.model_dump(mode="json")


def _away(error: Exception) -> str:
    return f"The controller does not answer ({str(error) or 'no answer in time'}). Replicas go on with their last plan."
