"""Clients of both transports that hang up at random moments leave no running request, no KV and no place behind."""

import asyncio
import contextlib
import random

import grpc
import httpx
import pytest

from sparktier.configs.contracts.signals import Signals
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from support import replica_http
from support.deployment import CLIENT_KEY, MODEL, SHOWN, Deployment, wait_until
from support.gateways.grpc_calls import method

AT_ONCE = 12
LONGEST_S = 2.0


async def over_http(deployment: Deployment, client: httpx.AsyncClient, draw: random.Random) -> None:
    body = {"model": MODEL, "prompt": f"Tell {draw.random()}", "max_tokens": 2000, "ignore_eos": True}
    streams = draw.random() < 0.7
    async with client.stream(
        "POST", f"{deployment.url}/v1/completions", json=body | {"stream": streams}, headers=SHOWN
    ) as answer:
        async for _ in answer.aiter_raw():
            pass


async def over_grpc(channel: grpc.aio.Channel, draw: random.Random) -> None:
    sampling = pb.Sampling(max_tokens=2000, ignore_eos=True)
    asked = pb.CompleteRequest(prompts=[pb.Prompt(text=f"Tell {draw.random()}")], sampling=sampling)
    shown = (("authorization", f"Bearer {CLIENT_KEY}"),)
    if draw.random() < 0.7:
        async for _ in method(channel, "StreamComplete")(asked, metadata=shown):
            pass
    else:
        await method(channel, "Complete")(asked, metadata=shown)


async def hang_up(deployment: Deployment, count: int, *, seed: int) -> None:
    """Have `count` clients hang up, each at a moment of its own."""
    draw, places = random.Random(seed), asyncio.Semaphore(AT_ONCE)

    async def one(channel: grpc.aio.Channel, client: httpx.AsyncClient) -> None:
        asking = over_grpc(channel, draw) if draw.random() < 0.5 else over_http(deployment, client, draw)
        async with places:
            with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError):
                await asyncio.wait_for(asking, draw.uniform(0, LONGEST_S))

    async with (
        grpc.aio.insecure_channel(deployment.grpc_address) as channel,
        httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_keepalive_connections=0)) as client,
    ):
        await asyncio.gather(*(one(channel, client) for _ in range(count)))


def left(deployment: Deployment) -> list[float]:
    """Return what the ranks hold: requests that run or wait, and used KV."""
    raw = replica_http.get(f"{deployment.replica_url()}/sparktier/signals", timeout=30).content
    ranks = Signals.model_validate_json(raw).ranks
    requests = sum(sum(rank.running.values()) + sum(rank.queued.values()) for rank in ranks)
    return [requests, max(rank.kv_used_frac for rank in ranks)]


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.prove)])
def test_clients_that_hang_up_leave_nothing_behind(drafting: Deployment, count: int) -> None:
    asyncio.run(hang_up(drafting, count, seed=count))
    wait_until(lambda: left(drafting) == [0, 0], timeout_s=60, what=lambda: f"an idle engine (found {left(drafting)})")
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": 2}
    answer = httpx.post(f"{drafting.url}/v1/completions", json=body, headers=SHOWN, timeout=60)
    assert answer.status_code == 200
    page = httpx.get(f"{drafting.internal_url}/metrics", timeout=60).text
    assert [line for line in page.splitlines() if line.startswith("sparktier_gateway_in_flight_requests")] == [
        "sparktier_gateway_in_flight_requests 0.0"
    ]
