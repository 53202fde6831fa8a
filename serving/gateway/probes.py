"""What is asked of a replica to know whether it serves."""

from typing import Any

from sparktier.configs.errors import ReplicaLost
from sparktier.serving.clients.rank_facts import RankFacts, read_ranks
from sparktier.serving.clients.replica import OK, AsyncReplicaClient
from sparktier.serving.gateway.routing import Replica

FAILED_PROBES = 3
"""A probe is one generated token; several must fail, because a long prefill can make one late."""
_FIRST_REQUEST_TIMEOUT_S = 60.0
_RANKS_TIMEOUT_S = 10.0


class Probes:
    """Asks `replica` at the address that it has now."""

    def __init__(self, replica: Replica, client: AsyncReplicaClient, *, timeout_s: float) -> None:
        self._replica = replica
        self._client = client
        self._timeout_s = timeout_s

    async def healthy(self) -> bool:
        """Whether its engine is alive."""
        return await self._ok("/health")

    async def ready(self) -> list[RankFacts]:
        """Return what its ranks say once a request has been answered; nothing before."""
        if await self._ok("/ready") and await self._answers():
            return await self._ranks()
        return []

    async def _ok(self, path: str) -> bool:
        return await self._asked("GET", path, timeout_s=self._timeout_s) is not None

    async def _answers(self) -> bool:
        """Whether a real request is answered: readiness is a promise that one would be."""
        body = {"prompt": "Hello", "max_tokens": 2, "temperature": 0}
        answer = await self._asked("POST", "/v1/completions", timeout_s=_FIRST_REQUEST_TIMEOUT_S, json=body)
        return answer is not None

    async def _ranks(self) -> list[RankFacts]:
        """Return what the ranks say, or nothing while they say what can't be read."""
        answer = await self._asked("GET", "/sparktier/ranks", timeout_s=_RANKS_TIMEOUT_S)
        try:
            return [] if answer is None else read_ranks(answer)
        except ValueError:
            return []

    async def _asked(self, method: str, path: str, *, timeout_s: float, **content: Any) -> bytes | None:
        """Return the body of an answer with status 200, None for any other outcome."""
        try:
            answer = await self._client.ask(method, f"{self._replica.url}{path}", timeout_s=timeout_s, **content)
        except ReplicaLost:
            return None
        return answer.content if answer.status == OK else None
