"""What a gateway keeps and shows of its requests, made from the settings: the log of use, metrics, spans."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from sparktier.configs.settings.settings import Settings
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.core.meter import Meter, Unmetered
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.telemetry.metrics import GatewayMetrics
from sparktier.serving.gateway.telemetry.spans import spans_to
from sparktier.serving.gateway.telemetry.telemetry import Telemetry
from sparktier.serving.gateway.usage_log.journal import Journal
from sparktier.serving.gateway.usage_log.meter import UsageMeter

# A stop has little time; what it leaves unsettled keeps the tokens that were delivered.
_LONGEST_FINISH_S = 1.0


def journal_of(settings: Settings) -> Journal | None:
    """Return the log of use, or None where none is kept. Raises ArtifactError where it can't be written."""
    path = settings.usage.path
    return None if path is None else Journal(Path(path), max_file_bytes=settings.usage.max_file_bytes)


class Instruments:
    """The instruments of one gateway. `client` asks the replicas of `table` with the admin key; `failed_reloads` is
    counted elsewhere.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal | None,
        table: ReplicaTable,
        client: AsyncReplicaClient,
        failed_reloads: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._usage = None

        def replicas() -> Mapping[int, str]:
            return {each.number: each.url for each in table.replicas if each.state.has_ready_engine}

        if journal is not None:
            self._usage = UsageMeter(journal, replicas=replicas, client=client)
        self._spans = spans_to(settings.telemetry.otlp_endpoint)
        self.meter: Meter = self._usage or Unmetered()
        self.metrics = GatewayMetrics(
            lost_records=lambda: 0 if journal is None else journal.lost, failed_reloads=failed_reloads
        )
        self.observer = Telemetry(self.metrics, self._spans)

    async def run(self) -> None:
        """Settle the use of requests until cancelled."""
        if self._usage is not None:
            await self._usage.run()
        await asyncio.Event().wait()

    async def finish(self) -> None:
        """Settle what the stop of the gateway has cut; call it while the replicas still run."""
        if self._usage is not None:
            await self._usage.finish(limit_s=_LONGEST_FINISH_S)

    def close(self) -> None:
        """Write and send what waits."""
        if self._usage is not None:
            self._usage.close()
        if self._spans is not None:
            self._spans.close()
