"""The front over real sockets, before scripted replicas: what is passed on, and what comes of a lost or slow one."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.http.internal import internal_app
from sparktier.serving.gateway.replica_life import ReplicaLife, State
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.gateway.telemetry.metrics import GatewayMetrics
from support.gateways.fronts import (
    ASKED,
    DONE,
    TOKEN,
    answered,
    asked,
    fronted,
    listening,
    post,
    serving,
    wait_for_hang_up,
)
from support.scripted_replica import STREAM_END, STREAM_HEAD, chunk, json_answer, scripted_replica


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def last_event(answer: httpx.Response) -> dict[str, Any]:
    """The last event, whose place is after whole ones only."""
    events = [event for event in answer.text.split("\n\n") if event]
    assert all(event.startswith("data: ") for event in events)
    event: dict[str, Any] = json.loads(events[-1].removeprefix("data: "))
    return event


async def until_idle(replica: Replica) -> None:
    async with asyncio.timeout(10):
        while replica.in_flight:
            await asyncio.sleep(0.01)


async def test_an_answer_comes_back_as_it_is() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(json_answer(b'{"id": "a"}'))

    async with asked(script) as (client, replica):
        answer = await post(client)
        assert (answer.status_code, answer.json()) == (200, {"id": "a"})
        assert replica.in_flight == 0


async def test_what_speculation_did_is_asked_for_and_moved_into_usage() -> None:
    told = {"spec_verify_ct": 4, "spec_num_correct_drafts": 6, "spec_cap_lens_histogram": [0, 1, 0, 3]}

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        assert json.loads(body)["return_spec_tokens_details"] is True
        answer = {"usage": {"total_tokens": 12}, "sglext": {"spec_tokens_details": told}}
        if not json.loads(body).get("stream"):
            writer.write(json_answer(json.dumps(answer).encode()))
            return
        events = "".join(f"data: {json.dumps(part, separators=(',', ':'))}\n\n" for part in split(answer))
        writer.write(STREAM_HEAD + chunk(TOKEN) + chunk(events.encode()) + chunk(DONE) + STREAM_END)

    def split(answer: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"choices": [], name: value} for name, value in reversed(answer.items())]

    usage = {"tier": "standard", "accepted_length": 2.5, "rounds": 4, "rows_verified": 10}
    async with asked(script) as (client, _):
        assert (await post(client)).json() == {"usage": {"total_tokens": 12, "sparktier": usage}}
        answer = await post(client, stream=True, stream_options={"include_usage": True})
        events = answer.text.split("\n\n")
    assert [events[0], events[2]] == ['data: {"text":"a"}', "data: [DONE]"]
    assert json.loads(events[1].removeprefix("data: "))["usage"]["sparktier"] == usage


async def test_metrics_of_replicas_come_on_one_page() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        page = b"# HELP a_ms A.\n# TYPE a_ms gauge\na_ms 1.0\n"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page)

    async with scripted_replica(script) as first, scripted_replica(script) as second:
        replicas = (serving(0, first), serving(3, second), serving(4, "http://127.0.0.1:1"))
        async with (
            AsyncReplicaClient() as upstream,
            fronted(*replicas) as (public, _),
            listening(internal_app(ReplicaTable(replicas), upstream, GatewayMetrics())) as (internal, _),
            httpx.AsyncClient() as client,
        ):
            answer = await client.get(f"{internal}/metrics")
            assert (await client.get(f"{public}/metrics")).status_code == 404
            assert (await client.post(f"{internal}/v1/completions", json=ASKED)).status_code == 404
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    own, _, theirs = answer.text.partition("# HELP a_ms ")
    assert "sparktier_gateway_in_flight_requests 0.0" in own
    assert theirs.splitlines()[2:] == ['a_ms{replica="0"} 1.0', 'a_ms{replica="3"} 1.0']


async def test_a_stream_comes_back_as_it_is_even_cut_anywhere() -> None:
    sent = TOKEN * 3 + DONE

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD)
        for start in range(0, len(sent), 7):
            writer.write(chunk(sent[start : start + 7]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(STREAM_END)

    async with asked(script) as (client, replica):
        answer = await post(client, stream=True)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.content == sent
        await until_idle(replica)


async def test_the_first_event_is_not_held_back() -> None:
    more = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD + chunk(TOKEN))
        await more.wait()
        writer.write(chunk(DONE) + STREAM_END)

    body = ASKED | {"stream": True}
    async with asked(script) as (client, _), client.stream("POST", "/v1/completions", json=body, timeout=30) as answer:
        events = answer.aiter_bytes()
        assert await anext(events) == TOKEN
        more.set()
        assert await anext(events) == DONE


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"]
)
async def test_a_replica_that_dies_is_a_clean_error(sent: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(sent)

    async with asked(script) as (client, replica):
        answer = await post(client)
        assert answer.status_code == 502
        assert error_of(answer)["code"] == "replica_lost"
        assert replica.in_flight == 0


async def test_a_replica_that_is_not_there_is_a_clean_error() -> None:
    async with fronted(serving(0, "http://127.0.0.1:1")) as (url, _), httpx.AsyncClient(base_url=url) as client:
        assert error_of(await post(client))["code"] == "replica_lost"


async def test_a_replica_that_dies_inside_an_event_leaves_no_half_of_it() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD + chunk(TOKEN) + chunk(TOKEN + TOKEN[:9]))
        await writer.drain()
        # What comes in one piece with the end of a connection is lost with it.
        await asyncio.sleep(0.2)

    async with asked(script) as (client, replica):
        answer = await post(client, stream=True)
        assert answer.content.startswith(TOKEN + TOKEN + b'data: {"error"')
        assert last_event(answer)["error"]["code"] == "replica_lost"
        await until_idle(replica)


async def test_a_replica_that_dies_before_the_first_event_is_a_plain_error() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD)

    async with asked(script) as (client, _):
        answer = await post(client, stream=True)
        assert answer.status_code == 502
        assert error_of(answer)["code"] == "replica_lost"


async def test_a_stream_that_opens_with_an_error_has_its_status() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        said = b'data: {"error": {"object": "error", "message": "Bad regex.", "code": 400}}\n\n'
        writer.write(STREAM_HEAD + chunk(said + DONE) + STREAM_END)

    async with asked(script) as (client, _):
        answer = await post(client, stream=True)
        assert answer.status_code == 400
        assert error_of(answer)["message"] == "Bad regex."


async def test_a_refusal_of_the_engine_is_restated() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(json_answer(b'{"object": "error", "message": "Too long.", "code": 400}', "400 Bad Request"))

    async with asked(script) as (client, _):
        answer = await post(client)
        assert (answer.status_code, error_of(answer)["message"]) == (400, "Too long.")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_takes_too_long_is_ended_with_an_error(stream: bool) -> None:
    hung_up = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD + chunk(TOKEN) if stream else b"")
        await wait_for_hang_up(reader)
        hung_up.set()

    async with asked(script, request_timeout_s=2.0) as (client, replica):
        answer = await post(client, stream=stream)
        error = last_event(answer)["error"] if stream else error_of(answer)
        assert error["code"] == "timeout"
        await asyncio.wait_for(hung_up.wait(), 10)
        await until_idle(replica)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_ends_the_request_at_the_replica(stream: bool) -> None:
    hung_up = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD + chunk(TOKEN) if stream else b"")
        await wait_for_hang_up(reader)
        hung_up.set()

    async with asked(script) as (client, replica):
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/completions", json=ASKED | {"stream": stream}, timeout=httpx.Timeout(30, read=1.0))
        await asyncio.wait_for(hung_up.wait(), 10)
        await until_idle(replica)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_lets_requests_finish_and_then_ends_them_with_an_error(stream: bool) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD + chunk(TOKEN) if stream else b"")
        await wait_for_hang_up(reader)

    async with scripted_replica(script) as address:
        replica = serving(0, address)
        async with fronted(replica, grace_s=1) as (url, server), httpx.AsyncClient(base_url=url) as client:
            asking = asyncio.create_task(post(client, stream=stream))
            while not replica.in_flight:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            server.should_exit = True
            answer = await asking
        error = last_event(answer)["error"] if stream else error_of(answer)
        assert error["code"] == "stopping"
        assert replica.in_flight == 0


async def test_one_request_more_than_the_bound_is_told_to_come_again() -> None:
    release = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        await release.wait()
        writer.write(json_answer(b"{}"))

    async with asked(script, max_concurrent_requests=2) as (client, replica):
        waiting = [asyncio.create_task(post(client)) for _ in range(2)]
        while replica.in_flight < 2:
            await asyncio.sleep(0.01)
        refused = await post(client)
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        assert error_of(refused)["type"] == "rate_limit_error"
        release.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]
        assert (await post(client)).status_code == 200


async def silent_client(client: httpx.AsyncClient) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection to the front that has sent a request but for most of its body."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"
    )
    await writer.drain()
    return reader, writer


async def test_a_body_that_never_ends_holds_no_place_and_ends_soon() -> None:
    async with asked(answered, body_timeout_s=1.0, max_concurrent_requests=1) as (client, _):
        reader, writer = await silent_client(client)
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"body_too_slow"' in answer
        writer.close()
        assert (await post(client)).status_code == 200


async def test_clients_that_send_nothing_stop_no_other() -> None:
    async with asked(answered, body_timeout_s=300.0, max_concurrent_requests=3) as (client, _):
        silent = [await silent_client(client) for _ in range(3)]
        assert [(await post(client)).status_code for _ in range(2)] == [200, 200]
        # It took the place of the one that had been silent longest, which is told so.
        assert (await asyncio.wait_for(silent[0][0].read(), 20)).startswith(b"HTTP/1.1 408")
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 415), ("br", 415), ("identity", 200), ("", 200)])
async def test_a_body_that_is_encoded_is_refused(encoding: str, status: int) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    async with asked(answered) as (client, _):
        answer = await client.post("/v1/completions", content=json.dumps(ASKED), headers=headers, timeout=30)
    assert answer.status_code == status
    if status == 415:
        expected = f"Content-Encoding must be identity (found {encoding}). Send the body uncompressed."
        assert error_of(answer)["message"] == expected


async def test_a_client_that_is_still_sending_gets_its_refusal() -> None:
    headers = {"Content-Type": "application/json"}
    async with asked(answered, max_body_bytes=1024) as (client, _):
        for more, status in ({}, 413), ({"Content-Encoding": "gzip"}, 415):
            answer = await client.post("/v1/completions", content=b"a" * (8 << 20), headers=headers | more, timeout=30)
            assert answer.status_code == status


async def test_a_replica_that_takes_no_connection_is_passed_over() -> None:
    async with scripted_replica(answered) as address:
        replicas = serving(0, "http://127.0.0.1:1"), serving(1, "http://127.0.0.1:2"), serving(2, address)
        async with fronted(*replicas) as (url, _), httpx.AsyncClient(base_url=url) as client:
            assert (await post(client)).status_code == 200
            assert [replica.in_flight for replica in replicas] == [0, 0, 0]


async def test_without_a_replica_clients_are_told_to_come_again() -> None:
    async with fronted(Replica(0, life=ReplicaLife(State.DOWN))) as (url, _), httpx.AsyncClient(base_url=url) as client:
        answer = await post(client)
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "not_ready"
        assert answer.headers["retry-after"]
        ready = await client.get("/readyz")
        counts = {"off": 0, "starting": 0, "serving": 0, "draining": 0, "down": 1}
        assert (ready.status_code, ready.json()) == (503, {"replicas": counts})
        assert (await client.get("/healthz")).status_code == 200


async def test_requests_go_where_fewest_are() -> None:
    release = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        await release.wait()
        writer.write(json_answer(b"{}"))

    async with scripted_replica(script) as one, scripted_replica(script) as two:
        replicas = serving(0, one), serving(1, two)
        async with fronted(*replicas) as (url, _), httpx.AsyncClient(base_url=url) as client:
            # All at once: one that has been picked for counts before the next is.
            waiting = [asyncio.create_task(post(client)) for _ in range(6)]
            while sum(replica.in_flight for replica in replicas) < 6:
                await asyncio.sleep(0.01)
            assert [replica.in_flight for replica in replicas] == [3, 3]
            release.set()
            await asyncio.gather(*waiting)


async def test_the_replica_gets_the_body_without_what_only_we_may_set() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(json_answer(body))

    async with asked(script) as (client, _):
        answer = await post(client, custom_params={"sparktier_tier": 0}, seed=3, temperature=None)
        sent = answer.json()
        request_id = sent.pop("rid")
        assert re.fullmatch(r"[0-9a-f]{32}", request_id)
        params = {"sparktier_tier": 3, "sparktier_request": request_id}
        ours = {"custom_params": params, "return_spec_tokens_details": True}
        assert sent == ASKED | {"seed": 3} | ours


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_a_route_that_is_not_served_names_the_one_to_use(path: str) -> None:
    async with asked(answered) as (client, _):
        answer = await client.post(path, json={"model": "tiny", "input": "Hello"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "not_served")
    assert error["message"] == f"{path} is not served. Use /v1/chat/completions."
