"""Keeps the tiers of a running deployment: reloads them from its configuration, and sends them to the replicas by plan.

Where a controller issues plans, only it does: it is told of a reload instead.
"""

import asyncio
import time
from collections.abc import Callable, Iterator

from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.signals import Signals
from sparktier.configs.errors import ConfigError, ContractError, ReplicaLost
from sparktier.configs.rules.all import broken_rules
from sparktier.configs.settings.settings import Settings
from sparktier.serving.clients.operator_plan import operator_plan
from sparktier.serving.clients.replica import OK, AsyncReplicaClient
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.supervision.tier_reload import TierBook, changes, waiting_sections

_TICK_S = 0.5
# More than a replica waits for a rank that is late, so its reason arrives.
_TIMEOUT_S = 20.0
_UNAVAILABLE = 503


class TierPlans:
    """The tiers of the replicas in `table`; `client` shows their admin key, `load` reads the configuration anew.

    `use` has the front resolve requests by the tiers of settings, or raises ConfigError; `save` writes settings where
    replicas that start from now on read them. `tell` is called after each reload where a controller sends the tiers;
    with None they are sent from here.
    """

    def __init__(
        self,
        settings: Settings,
        table: ReplicaTable,
        client: AsyncReplicaClient,
        *,
        load: Callable[[], Settings],
        use: Callable[[Settings], None],
        save: Callable[[Settings], None],
        log: Callable[[str], None],
        tell: Callable[[], None] | None = None,
    ) -> None:
        self._settings, self._table, self._client = settings, table, client
        self._load, self._use, self._save, self._log, self._tell = load, use, save, log, tell
        self._book = TierBook.of(settings.tiers)
        self._reloads = 0
        # By number: the process (a new one has a new address) and the reload that were sent last.
        self._sent: dict[int, tuple[str, int]] = {}

    def reload(self) -> None:
        """Take the tiers of the configuration as it is now; on any error those in force stay, and the log says why."""
        try:
            new = self._load()
            book = self._book.reloaded(new.tiers)
            changed = changes(self._book.tiers, new.tiers)
            settings = self._settings.model_copy(update={"tiers": new.tiers})
            if problems := broken_rules(settings):
                raise ConfigError(problems)
            self._use(settings)
            self._saved(settings)
        except (ConfigError, OSError) as error:
            for line in _reasons(error):
                self._log(f"tiers not reloaded: {line}")
            return
        for section in waiting_sections(self._settings, new):
            self._log(f"reload: {section} has changed in the configuration, which takes a restart")
        self._settings, self._book = settings, book
        self._reloads += 1
        self._log("\n    ".join(["tiers reloaded", *(changed or ["nothing has changed"])]))
        if self._tell is not None:
            self._tell()

    def _saved(self, settings: Settings) -> None:
        try:
            self._save(settings)
        except OSError:
            self._use(self._settings)
            raise

    async def run(self) -> None:
        """Send the tiers to each replica that is ready and has not got those of the last reload, until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            await self.send()

    async def send(self) -> None:
        """Send the tiers to each replica that is ready and has not got them; it started with those of its file."""
        waiting = [replica for replica in self._table.replicas if self._waits(replica)]
        await asyncio.gather(*(self._send_to(replica) for replica in waiting))

    def _waits(self, replica: Replica) -> bool:
        if self._tell is not None or self._reloads == 0 or not replica.state.has_ready_engine:
            return False
        return self._sent.get(replica.number) != (replica.url, self._reloads)

    async def _send_to(self, replica: Replica) -> None:
        url, reload = replica.url, self._reloads
        try:
            found = await self._client.ask("GET", f"{url}/sparktier/signals", timeout_s=_TIMEOUT_S)
            if found.status != OK:
                return
            signals = read_message(Signals, found.content)
            plan = operator_plan(signals, url=url, now_ms=round(time.time() * 1000), tiers=self._book.tiers)
            body = plan.model_dump(mode="json")
            answer = await self._client.ask("POST", f"{url}/sparktier/plan", timeout_s=_TIMEOUT_S, json=body)
        except (ReplicaLost, ContractError):
            return
        if answer.status == _UNAVAILABLE:
            return
        self._sent[replica.number] = (url, reload)
        told = f"replica {replica.number}"
        if answer.status == OK:
            self._log(f"{told} has the tiers of the reload, by plan {plan.version}")
        else:
            self._log(f"{told} keeps the tiers it has: {answer.text:.500}")


def _reasons(error: ConfigError | OSError) -> Iterator[str]:
    yield from map(str, error.problems) if isinstance(error, ConfigError) else [str(error)]
