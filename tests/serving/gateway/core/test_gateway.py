"""The core before a scripted replica: what is recorded when, what observers see, and what is released at each end."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sparktier.configs.contracts.ended import REQUEST_ID_HEADER
from sparktier.configs.contracts.room import TIER_HEADER, USERS_HEADER
from sparktier.configs.settings.settings import GatewaySettings, ServerSettings, TierSettings
from sparktier.serving.clients.rank_facts import EngineLimits
from sparktier.serving.clients.replica import AsyncReplicaClient, OpenAnswer
from sparktier.serving.gateway.access import Access
from sparktier.serving.gateway.core.ask import Ask, Kind
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.core.meter import Ended, Started
from sparktier.serving.gateway.core.observer import Outcome, Phase
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.replica_life import ReplicaLife, State
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.gateway.tier_resolution import TierAsk, TierTable
from support.scripted_replica import STREAM_END, STREAM_HEAD, Script, chunk, json_answer, scripted_replica

ACCESS = Access(TierTable({3: TierSettings(name="standard", default=True)}, GatewaySettings()))
LIMITS = EngineLimits(vocab_size=512, context_tokens=256, token_characters=12)
USED = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
DONE = chunk(b"data: [DONE]\n\n")


def token(completion: int) -> bytes:
    usage = {"prompt_tokens": 4, "completion_tokens": completion, "total_tokens": 4 + completion}
    return chunk(b"data: %s\n\n" % json.dumps({"choices": [{"index": 0, "text": "a"}], "usage": usage}).encode())


LAST = chunk(b"data: %s\n\n" % json.dumps({"choices": [], "usage": USED}).encode())


class Seen:
    """A meter, an observer and its watches, which keep all that they are told, in order."""

    traceparent = TRACE

    def __init__(self) -> None:
        self.all: list[Any] = []

    async def started(self, record: Started) -> None:
        self.all.append(record)

    async def ended(self, record: Ended) -> None:
        self.all.append(record)

    def watch(self, ask: Ask) -> "_Watch":
        return _Watch(self.all)

    def of(self, kind: type[Any]) -> list[Any]:
        return [item for item in self.all if isinstance(item, kind)]


class _Watch:
    traceparent = TRACE

    def __init__(self, seen: list[Any]) -> None:
        self._seen = seen

    def reached(self, phase: Phase) -> None:
        self._seen.append(phase)

    def ended(self, outcome: Outcome) -> None:
        self._seen.append(outcome)


@contextlib.asynccontextmanager
async def gateway_of(script: Script, seen: Seen, **settings: Any) -> AsyncIterator[tuple[Gateway, Replica]]:
    async with scripted_replica(script) as url, AsyncReplicaClient() as client:
        replica = Replica(0, url, ReplicaLife(State.SERVING), limits=LIMITS)
        server = ServerSettings(**settings)
        table = ReplicaTable((replica,))
        yield Gateway(table, server, client, model="tiny", access=ACCESS, meter=seen, observer=seen), replica


def ask(gateway: Gateway, **fields: Any) -> Ask:
    body = {"prompt": "Hello", **fields}
    deadline_s = asyncio.get_running_loop().time() + 20
    return Ask(Kind.COMPLETION, body, TierAsk(), ACCESS.authenticate(None), "mine", deadline_s, None)


async def streamed(gateway: Gateway) -> list[dict[str, Any]]:
    async with gateway.answering(ask(gateway, stream=True)) as answer:
        return [message async for batch in answer.events() for message in batch]


async def whole(gateway: Gateway, **fields: Any) -> dict[str, Any]:
    async with gateway.answering(ask(gateway, **fields)) as answer:
        return await answer.whole()


def saying(*parts: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
        await reader.read()

    return script


async def test_a_request_starts_before_it_is_sent_and_ends_before_its_answer_is_there() -> None:
    seen = Seen()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        seen.all.append(json.loads(body))
        writer.write(json_answer(json.dumps({"usage": USED}).encode()))

    async with gateway_of(script, seen) as (gateway, replica):
        async with gateway.answering(ask(gateway, n=2)) as answer:
            assert (await answer.whole())["usage"]["total_tokens"] == 6
            assert isinstance(seen.all[-1], Ended)
        [started], [ended] = seen.of(Started), seen.of(Ended)
        assert started == Started(
            ended.engine_id, "mine", "", "standard", Kind.COMPLETION, users=2, replica=0, url=replica.url
        )
        assert ended == Ended(started.engine_id, 4, 2, complete=True)
        [sent] = seen.of(dict)
        assert sent["rid"] == started.engine_id
        names = [item if isinstance(item, Phase) else type(item) for item in seen.all]
        assert names == [Phase.ADMITTED, Started, Phase.SENT, dict, Phase.FIRST_TOKEN, Ended, Outcome]
        assert seen.all[-1] == Outcome(200, "", "standard", 0, 4, 2, started.engine_id)


async def test_the_observer_s_trace_and_the_engine_s_id_go_to_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    headers: list[Any] = []
    bodies: list[Any] = []
    opened = AsyncReplicaClient.open

    async def noted(self: AsyncReplicaClient, url: str, body: bytes, sent: Any = None) -> OpenAnswer:
        headers.append(sent)
        bodies.append(json.loads(body))
        return await opened(self, url, body, sent)

    monkeypatch.setattr(AsyncReplicaClient, "open", noted)
    seen = Seen()
    async with gateway_of(saying(json_answer(b"{}")), seen) as (gateway, _):
        await whole(gateway)
    engine_id = seen.of(Started)[0].engine_id
    brought = {TIER_HEADER: "3", USERS_HEADER: "1"}
    assert headers == [{"traceparent": TRACE, REQUEST_ID_HEADER: engine_id, **brought}]
    # The parts of a request with several choices keep these alone.
    [params] = [body["custom_params"] for body in bodies]
    assert (params["sparktier_request"], params["sparktier_trace"]) == (engine_id, TRACE)


async def test_a_stream_ends_its_record_before_the_end_is_told() -> None:
    seen = Seen()
    script = saying(STREAM_HEAD, token(1), LAST, DONE, STREAM_END)
    async with gateway_of(script, seen) as (gateway, _), gateway.answering(ask(gateway, stream=True)) as answer:
        messages = [message async for batch in answer.events() for message in batch]
        assert isinstance(seen.all[-1], Ended)
    assert [message["choices"] for message in messages] == [[{"index": 0, "text": "a"}]]
    assert seen.of(Ended) == [Ended(seen.of(Started)[0].engine_id, 4, 2, complete=True)]
    assert seen.of(Phase).count(Phase.FIRST_TOKEN) == 1


async def test_a_stream_that_breaks_off_counts_what_was_delivered(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        for part in (STREAM_HEAD, token(1), token(3)):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)

    async with gateway_of(script, seen) as (gateway, replica):
        with pytest.raises(Refused) as refused:
            await streamed(gateway)
        assert (refused.value.status, refused.value.code) == (502, "replica_lost")
        assert replica.in_flight == 0
    [ended] = seen.of(Ended)
    assert ended == Ended(ended.engine_id, 4, 3, complete=False)
    assert seen.all[-1] == Outcome(502, "replica_lost", "standard", 0, 4, 3, ended.engine_id)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"request mine ({ended.engine_id} in the engine): replica 0 was lost: ClientPayloadError")
    assert "Hello" not in line


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_request_that_is_cancelled_frees_everything_and_is_recorded(stream: bool, begun: bool) -> None:
    seen = Seen()
    hung_up = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        if begun:
            head = STREAM_HEAD + token(1) if stream else b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"
            writer.write(head)
        assert await reader.read() == b""
        hung_up.set()

    async with gateway_of(script, seen) as (gateway, replica):

        async def asking() -> None:
            async with gateway.answering(ask(gateway, stream=stream)) as answer:
                _ = [batch async for batch in answer.events()] if stream else await answer.whole()

        task = asyncio.create_task(asking())
        while not seen.of(Started):
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert replica.in_flight == 0
        await asyncio.wait_for(hung_up.wait(), 10)
        gateway.require_place()
    [ended] = seen.of(Ended)
    told = stream and begun
    assert ended == Ended(ended.engine_id, 4 if told else None, 1 if told else None, complete=False)
    assert seen.all[-1].status == 499


async def test_an_abort_closes_the_connection_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(OpenAnswer, "close", lambda self: closed.append("closed"))
    script = saying(STREAM_HEAD, token(1))
    async with gateway_of(script, Seen()) as (gateway, _), gateway.answering(ask(gateway, stream=True)) as answer:
        assert await anext(answer.events())
        answer.abort()
        assert closed == ["closed"]


async def test_what_is_refused_before_it_is_sent_leaves_no_record() -> None:
    seen = Seen()
    async with gateway_of(saying(), seen) as (gateway, replica):
        with pytest.raises(Refused):
            await whole(gateway, temperature=-1.0)
        assert replica.in_flight == 0
    assert seen.all == [Outcome(400, "")]


async def test_where_no_replica_takes_it_each_try_is_recorded() -> None:
    seen = Seen()
    async with gateway_of(saying(), seen) as (gateway, _):
        gateway.table.replicas[0].url = "http://127.0.0.1:1"
        with pytest.raises(Refused) as refused:
            await whole(gateway)
    assert refused.value.code == "replica_lost"
    assert [record.replica for record in seen.of(Started)] == [0]
    assert [record.complete for record in seen.of(Ended)] == [False]


async def test_a_silent_stream_says_so_before_and_after_its_first_token() -> None:
    more = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        for part in (STREAM_HEAD + token(1), DONE + STREAM_END):
            await more.wait()
            more.clear()
            writer.write(part)
            await writer.drain()

    seen = Seen()
    settings = {"heartbeat_s": 0.02}
    async with (
        gateway_of(script, seen, **settings) as (gateway, _),
        gateway.answering(ask(gateway, stream=True)) as one,
    ):
        events = one.events()
        assert await anext(events) == []
        more.set()
        while not (messages := await anext(events)):
            pass
        assert messages[0]["choices"] == [{"index": 0, "text": "a"}]
        assert await anext(events) == []
        more.set()
        assert [messages async for messages in events if messages] == []
    assert seen.of(Ended)[0].complete


async def test_a_request_that_is_late_is_ended() -> None:
    async with gateway_of(saying(), Seen()) as (gateway, replica):
        late = ask(gateway)
        late = Ask(late.kind, late.body, late.tier, late.tenant, "mine", asyncio.get_running_loop().time() + 0.2)
        with pytest.raises(Refused) as refused:
            async with gateway.answering(late) as answer:
                await answer.whole()
        assert (refused.value.status, refused.value.code, replica.in_flight) == (504, "timeout", 0)
