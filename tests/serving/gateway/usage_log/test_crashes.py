"""Use adds up whatever crashes: random requests, hang-ups, kills of gateway and engine, then one reckoning."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparktier.configs.contracts.ended import EndedPage, EndedRequest
from sparktier.serving.clients.replica import ReplicaAnswer
from sparktier.serving.gateway.core.ask import Kind
from sparktier.serving.gateway.core.meter import Ended, Started
from sparktier.serving.gateway.usage_log.journal import FILES, Journal
from sparktier.serving.gateway.usage_log.meter import UsageMeter
from sparktier.serving.gateway.usage_log.records import UsageRecord, latest, records_in
from sparktier.serving.gateway.usage_log.settlement import GRACE_MS

PROMPT_TOKENS = 7
# As often as they are here.
OPERATIONS = (
    *("begin", "begin", "begin", "token", "token", "token", "finish", "hang up", "hang up"),
    *("settle", "settle", "kill gateway", "kill engine", "wait"),
)
STEPS = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 5)), min_size=8, max_size=40)


@dataclass
class Engine:
    """One replica: its process, what ended there, and the tokens of what runs."""

    epoch: int
    ended: list[EndedRequest] = field(default_factory=list)
    running: dict[str, int] = field(default_factory=dict)

    def end(self, engine_id: str, now_ms: int) -> int:
        tokens = self.running.pop(engine_id)
        self.ended.append(
            EndedRequest(
                seq=len(self.ended) + 1,
                request_id=engine_id,
                prompt_tokens=PROMPT_TOKENS,
                completion_tokens=tokens,
                cached_tokens=0,
                finish_reason="stop",
                arrived_at_ms=now_ms,
                ended_at_ms=now_ms,
            )
        )
        return tokens


class World:
    """A gateway and an engine, both of which may die, and the truth about each request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_ms = 1_000_000
        self.engine = Engine(self.now_ms)
        self.counted: dict[str, int] = {}
        self.delivered: dict[str, int] = {}
        self.killed_at_ms = 0
        self.open: list[str] = []
        self.meter = self._meter()

    def _meter(self) -> UsageMeter:
        journal = Journal(self.folder, max_file_bytes=4096)
        client: object = self
        return UsageMeter(
            journal,
            replicas=lambda: {0: "http://replica"},
            client=client,  # type: ignore[arg-type]
            now_ms=lambda: self.now_ms,
        )

    async def ask(self, method: str, url: str, *, timeout_s: float, json: object = None) -> ReplicaAnswer:
        after = int(url.rpartition("=")[2])
        shown = tuple(each for each in self.engine.ended if each.seq > after)[:3]
        page = EndedPage(
            replica_id="replica-0",
            epoch=self.engine.epoch,
            kept_from=1,
            last=len(self.engine.ended),
            in_flight=tuple(self.engine.running),
            ended=shown,
        )
        return ReplicaAnswer(200, page.model_dump_json().encode())

    async def do(self, operation: str, place: int) -> None:
        self.now_ms += 100
        if operation == "begin":
            await self._begin()
        elif operation == "settle":
            await self.meter.settle()
        elif operation == "wait":
            self.now_ms += GRACE_MS
        elif operation == "kill gateway":
            self._kill_gateway()
        elif operation == "kill engine":
            await self._kill_engine()
        elif self.open:
            await self._go_on(operation, self.open[place % len(self.open)])

    async def _begin(self) -> None:
        engine_id = f"e-{len(self.counted)}"
        await self.meter.started(Started(engine_id, "r", "t", "gold", Kind.CHAT, 1, 0, "http://replica"))
        self.engine.running[engine_id] = self.counted[engine_id] = self.delivered[engine_id] = 0
        self.open.append(engine_id)

    async def _go_on(self, operation: str, engine_id: str) -> None:
        if operation == "token":
            self.engine.running[engine_id] += 1
            self.counted[engine_id] += 1
            self.delivered[engine_id] = self.counted[engine_id]
            return
        self.open.remove(engine_id)
        if operation == "finish":
            tokens = self.engine.end(engine_id, self.now_ms)
            await self.meter.ended(Ended(engine_id, PROMPT_TOKENS, tokens, complete=True))
        else:
            # The engine makes a token more before it hears of it.
            await self.meter.ended(Ended(engine_id, PROMPT_TOKENS, self.delivered[engine_id], complete=False))
            self.engine.running[engine_id] += 1
            self.counted[engine_id] += 1
            self.engine.end(engine_id, self.now_ms)

    def _kill_gateway(self) -> None:
        self.meter.close()
        for engine_id in self.open:
            self.engine.end(engine_id, self.now_ms)
            # Only the dead gateway knew.
            self.delivered[engine_id] = 0
        self.open = []
        self.meter = self._meter()

    async def _kill_engine(self) -> None:
        self.killed_at_ms = self.now_ms
        self.engine = Engine(self.now_ms + 1)
        for engine_id in self.open:
            await self.meter.ended(Ended(engine_id, PROMPT_TOKENS, self.delivered[engine_id], complete=False))
        self.open = []

    def held(self) -> dict[str, UsageRecord]:
        lines = [line for file in sorted(self.folder.glob(FILES)) for line in file.read_bytes().splitlines()]
        return dict(latest(records_in(lines)))


async def reckoned(folder: Path, steps: list[tuple[str, int]]) -> World:
    world = World(folder)
    for operation, place in steps:
        await world.do(operation, place)
    world._kill_gateway()
    world.now_ms += 2 * GRACE_MS
    for _ in range(2):
        await world.meter.settle()
    world.meter.close()
    return world


@settings(max_examples=100)
@given(steps=STEPS)
def test_every_request_is_reckoned_whatever_crashes(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = asyncio.run(reckoned(tmp_path_factory.mktemp("log"), steps))
    found = world.held()
    assert found.keys() == world.counted.keys()
    for engine_id, record in found.items():
        assert record.is_settled
        if record.state == "complete":
            assert record.completion_tokens == world.counted[engine_id]
            assert record.prompt_tokens == PROMPT_TOKENS
        else:
            assert record.started_at_ms <= world.killed_at_ms
            assert record.completion_tokens == world.delivered[engine_id]
