"""The hot path of HTTP: what is written how often, what every answer has, and what a disconnect ends when."""

import asyncio
import json
import re
from typing import Any

import pytest
from starlette.types import ASGIApp

from sparktier.configs.settings.settings import ServerSettings
from sparktier.serving.clients.replica import AsyncReplicaClient, OpenAnswer
from sparktier.serving.gateway.core.answer import Answer
from sparktier.serving.gateway.core.ask import Ask
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.core.observer import Outcome, Phase, Unobserved, Watch
from sparktier.serving.gateway.http.front import front
from sparktier.serving.gateway.routing import ReplicaTable
from support.gateways.fronts import ASKED, DONE, EVERYBODY, TOKEN, answered, asked, serving, wait_for_hang_up
from support.scripted_replica import STREAM_END, STREAM_HEAD, chunk, scripted_replica


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-1.2:3", True), ("x" * 128, True), ("x" * 129, False), ("", False), ("a b", False), ("\u00e9", False)],
)
async def test_every_answer_has_a_request_id_and_a_client_s_own_is_kept(sent: str, kept: bool) -> None:
    headers = {"x-request-id": sent.encode()}
    async with asked(answered) as (client, _):
        answers = [
            await client.post("/v1/completions", json=ASKED, headers=headers),
            await client.post("/v1/completions", json=ASKED | {"n": -1}, headers=headers),
            await client.post("/v1/completions", json=ASKED | {"stream": True}, headers=headers),
            *[await client.get(path, headers=headers) for path in ("/v1/models", "/healthz", "/none")],
        ]
    for answer in answers:
        found = answer.headers["x-request-id"]
        assert found == sent if kept else re.fullmatch(r"[0-9a-f]{32}", found)


async def test_a_silent_stream_is_kept_alive_by_comments() -> None:
    release = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        await release.wait()
        writer.write(STREAM_HEAD + chunk(TOKEN) + chunk(DONE) + STREAM_END)

    body = ASKED | {"stream": True}
    async with (
        asked(script, heartbeat_s=0.05) as (client, _),
        client.stream("POST", "/v1/completions", json=body, timeout=30) as answer,
    ):
        parts = answer.aiter_bytes()
        assert answer.status_code == 200
        assert (await anext(parts)).startswith(b": ")
        release.set()
        sent = b"".join([part async for part in parts])
    assert sent.endswith(TOKEN + DONE)
    assert all(line.startswith((b": ", b"data: ")) for line in sent.split(b"\n\n") if line)


async def streamed_by_hand(app: ASGIApp, hang_up_after: int | None = None) -> list[Any]:
    """Return what an application sends for a stream; the client hangs up after so many of its bodies."""
    sent: list[Any] = []
    gone = asyncio.Event()
    body: list[dict[str, Any]] = [{"type": "http.request", "body": json.dumps(ASKED | {"stream": True}).encode()}]

    async def receive() -> Any:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == hang_up_after:
            gone.set()

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
    await app(scope, receive, send)
    return sent


async def test_each_chunk_is_written_once() -> None:
    chunks = 20

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD)
        for _ in range(chunks):
            writer.write(chunk(TOKEN + TOKEN))
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(chunk(DONE) + STREAM_END)

    async with scripted_replica(script) as url, AsyncReplicaClient() as client:
        table = ReplicaTable((serving(0, url),))
        app = front(Gateway(table, ServerSettings(), client, model="tiny", access=EVERYBODY))
        sent = await streamed_by_hand(app)
    bodies = [message["body"] for message in sent if message["type"] == "http.response.body"]
    assert b"".join(bodies) == (TOKEN + TOKEN) * chunks + DONE
    # The start of the answer, at most one write a chunk, and the end.
    assert len(sent) <= 1 + chunks + 1


class Counting(Unobserved):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told = 0

    def watch(self, ask: Ask) -> Watch:
        self.told += 1
        return self

    traceparent = None

    def reached(self, phase: Phase) -> None:
        self.told += 1

    def ended(self, outcome: Outcome) -> None:
        self.told += 1


@pytest.mark.parametrize("chunks", [1, 40])
async def test_no_span_no_metric_and_no_line_is_made_for_a_chunk(chunks: int) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD + chunk(TOKEN) * chunks + chunk(DONE) + STREAM_END)

    observer = Counting()
    async with scripted_replica(script) as url, AsyncReplicaClient() as client:
        table = ReplicaTable((serving(0, url),))
        gateway = Gateway(table, ServerSettings(), client, model="tiny", access=EVERYBODY, observer=observer)
        await streamed_by_hand(front(gateway))
    # It begins, is admitted, is sent, has its first token, and ends.
    assert observer.told == 5


async def test_the_engine_s_request_ends_in_the_turn_that_learns_of_a_hang_up(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: dict[str, int] = {}
    turn = 0
    closed, reading = OpenAnswer.close, Answer.abort

    async def counting() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def close(self: OpenAnswer) -> None:
        turns.setdefault("closed", turn)
        closed(self)

    def abort(self: Answer) -> None:
        turns.setdefault("learned", turn)
        reading(self)

    monkeypatch.setattr(OpenAnswer, "close", close)
    monkeypatch.setattr(Answer, "abort", abort)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD + chunk(TOKEN))
        await wait_for_hang_up(reader)

    async with scripted_replica(script) as url, AsyncReplicaClient() as client:
        table = ReplicaTable((serving(0, url),))
        app = front(Gateway(table, ServerSettings(), client, model="tiny", access=EVERYBODY))
        counter = asyncio.create_task(counting())
        await streamed_by_hand(app, hang_up_after=2)
        counter.cancel()
    assert turns["closed"] == turns["learned"]
    assert table.replicas[0].in_flight == 0
