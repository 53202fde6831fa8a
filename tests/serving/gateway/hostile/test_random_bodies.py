"""Random bodies are answered or refused as declared, over both transports, and leave nothing behind."""

import asyncio
import gc
import json
import random
from collections import Counter
from typing import Any

import grpc
import psutil
import pytest
from starlette.types import ASGIApp

from sparktier.configs.settings.settings import ServerSettings
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.grpc.server import serving as grpc_serving
from sparktier.serving.gateway.grpc.service import SERVICE
from sparktier.serving.gateway.http.front import front
from sparktier.serving.gateway.http.openapi import document
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from sparktier.serving.gateway.routing import ReplicaTable
from support.gateways import fronts
from support.gateways.grpc_calls import free_port
from support.gateways.plain_replica import answers
from support.inputs.random_bodies import random_body
from support.scripted_replica import scripted_replica

DECLARED = {
    path: {int(status) for status in operation["post"]["responses"]}
    for path, operation in document("tiny")["paths"].items()
    if "post" in operation
}
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.OK,
}
GROWN_BYTES = 40 << 20


async def sent(app: ASGIApp, path: str, body: bytes) -> tuple[int, bytes]:
    """Return status and body of an answer, without a socket between."""
    parts: list[Any] = []
    waiting = [{"type": "http.request", "body": body}]

    async def receive() -> Any:
        if waiting:
            return waiting.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        parts.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-type", b"application/json")]}
    await app(scope, receive, send)
    return parts[0]["status"], b"".join(part["body"] for part in parts[1:])


def checked(path: str, body: bytes, status: int, answer: bytes) -> None:
    said = f"{path} {body!r}: {status} {answer!r}"
    assert status in DECLARED[path], said
    assert status < 500, said
    if status == 200:
        assert answer.endswith(b"data: [DONE]\n\n") or json.loads(answer)["choices"], said
    else:
        assert json.loads(answer)["error"].keys() == {"message", "type", "param", "code"}, said


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.prove)])
async def test_random_bodies_are_answered_or_refused_and_leave_nothing(count: int) -> None:
    rng, statuses = random.Random(count), Counter[int]()
    async with scripted_replica(answers) as url, AsyncReplicaClient() as client:
        replica = fronts.serving(0, url)
        gateway = Gateway(ReplicaTable((replica,)), ServerSettings(), client, model="tiny", access=fronts.EVERYBODY)
        app, used = front(gateway), 0
        for number in range(count):
            path, body = random_body(rng)
            status, answer = await sent(app, path, body)
            checked(path, body, status, answer)
            statuses[status] += 1
            if number == count // 10:
                gc.collect()
                used = psutil.Process().memory_info().rss
        gc.collect()
        # The replica's side of the last connections may be ending.
        await asyncio.sleep(0)
        assert psutil.Process().memory_info().rss - used < GROWN_BYTES
        assert (replica.in_flight, gateway._in_flight) == (0, 0)
        assert not [task for task in asyncio.all_tasks() if "gateway" in repr(task.get_coro())]
    print(dict(statuses))  # noqa: T201
    assert min(statuses[200], statuses[400]) > count // 50


def random_message(rng: random.Random) -> bytes:
    """Return a completion with bytes changed, or any bytes."""
    sampling = pb.Sampling(max_tokens=rng.randrange(40), temperature=rng.choice([0.0, 1.0, -1.0, float("nan")]))
    whole = pb.CompleteRequest(prompts=[pb.Prompt(text="Hi")] * rng.randrange(3), sampling=sampling, tier="standard")
    raw = bytearray(whole.SerializeToString())
    for _ in range(rng.randrange(4)):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw) if rng.random() < 0.9 else rng.randbytes(rng.randrange(100))


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.prove)])
async def test_random_messages_are_answered_or_refused(count: int) -> None:
    rng, codes = random.Random(count), Counter[grpc.StatusCode]()
    async with scripted_replica(answers) as url, AsyncReplicaClient() as client:
        replica = fronts.serving(0, url)
        server = ServerSettings(grpc_port=free_port(), shutdown_grace_s=0.1)
        gateway = Gateway(ReplicaTable((replica,)), server, client, model="tiny", access=fronts.EVERYBODY)
        async with grpc_serving(gateway) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(f"/{SERVICE}/Complete")
            for _ in range(count):
                message = random_message(rng)
                asked = call(message)
                code = await asked.code()
                assert code in REFUSALS, f"{message!r}: {code} {await asked.details()}"
                codes[code] += 1
        assert (replica.in_flight, gateway._in_flight) == (0, 0)
    print(codes)  # noqa: T201
    assert min(codes[grpc.StatusCode.OK], codes[grpc.StatusCode.INVALID_ARGUMENT]) > count // 50
