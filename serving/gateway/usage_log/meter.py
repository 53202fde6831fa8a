"""Keeps the records of use for the core, and settles those that broke off by what the replicas tell."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping

from sparktier.configs.contracts.ended import EndedPage
from sparktier.configs.contracts.message import read_message
from sparktier.configs.errors import ContractError, ReplicaLost
from sparktier.serving.clients.replica import OK, AsyncReplicaClient
from sparktier.serving.gateway.core.meter import Ended, Started
from sparktier.serving.gateway.usage_log.journal import Journal
from sparktier.serving.gateway.usage_log.records import UsageRecord
from sparktier.serving.gateway.usage_log.settlement import Settlement

# A disk that hangs holds no request up for longer; its records follow when it works again.
_LONGEST_WAIT_S = 1.0
_TICK_S, _LAST_TICK_S = 0.5, 0.1
_ASK_TIMEOUT_S = 10.0
# An unreachable replica is replaced within minutes, and its successor says that it has no list of before.
PATIENCE_MS = 900_000
logger = logging.getLogger(__name__)


class UsageMeter:
    """A meter over `journal`. `replicas` gives the addresses of those that answer now, by number."""

    def __init__(
        self,
        journal: Journal,
        *,
        replicas: Callable[[], Mapping[int, str]],
        client: AsyncReplicaClient,
        now_ms: Callable[[], int] = lambda: round(time.time() * 1000),
    ) -> None:
        self._journal = journal
        self._replicas = replicas
        self._client = client
        self._now_ms = now_ms
        self._records: dict[str, UsageRecord] = {}
        self._settlement = Settlement(journal.left)

    async def started(self, record: Started) -> None:
        """Keep that a request is about to be sent."""
        now_ms = self._now_ms()
        kept = self._records[record.engine_id] = UsageRecord(
            state="open",
            at_ms=now_ms,
            started_at_ms=now_ms,
            engine_id=record.engine_id,
            request_id=record.request_id,
            tenant=record.tenant,
            tier=record.tier,
            kind=record.kind.value,
            users=record.users,
            replica=record.replica,
        )
        await self._keep(kept)

    async def ended(self, record: Ended) -> None:
        """Keep what a request had; where its answer broke off, or has told no tokens, the engine is asked."""
        started = self._records.pop(record.engine_id, None)
        if started is None:
            return
        told = record.complete and record.completion_tokens is not None
        await self._keep(
            started.now(
                "complete" if told else "ended",
                self._now_ms(),
                prompt_tokens=record.prompt_tokens,
                completion_tokens=record.completion_tokens,
            )
        )

    async def run(self) -> None:
        """Settle requests until cancelled."""
        while True:
            try:
                await self.settle()
            except Exception:
                logger.exception("Settling the use of requests failed, and is tried again.")
            await asyncio.sleep(_TICK_S)

    async def settle(self) -> None:
        """Ask the replicas once about all that they are to tell."""
        addresses = self._replicas()
        for number in self._settlement.awaited:
            if number in addresses:
                await self._ask(number, addresses[number])
        await self._keep_all(self._settlement.given_up(self._now_ms(), patience_ms=PATIENCE_MS))

    async def finish(self, *, limit_s: float) -> None:
        """Settle what broke off at the last, while the replicas still run: for `limit_s` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._settlement.awaited & self._replicas().keys():
                    await self.settle()
                    await asyncio.sleep(_LAST_TICK_S)

    def close(self) -> None:
        """Write what waits and close the log."""
        self._journal.close()

    async def _ask(self, number: int, address: str) -> None:
        another = True
        while another:
            url = f"{address}/sparktier/ended?after={self._settlement.after(number)}"
            try:
                answer = await self._client.ask("GET", url, timeout_s=_ASK_TIMEOUT_S)
                if answer.status != OK:
                    return
                page = read_message(EndedPage, answer.content)
            except (ReplicaLost, ContractError):
                return
            settled, another = self._settlement.told(number, page, self._now_ms())
            await self._keep_all(settled)

    async def _keep_all(self, records: list[UsageRecord]) -> None:
        if records:
            await asyncio.wait([self._journal.add(record) for record in records], timeout=_LONGEST_WAIT_S)

    async def _keep(self, record: UsageRecord) -> None:
        kept = self._journal.add(record)
        self._settlement.note(record)
        await asyncio.wait([kept], timeout=_LONGEST_WAIT_S)
