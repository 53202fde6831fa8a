"""HTTP fronts over real sockets before scripted replicas, for tests of what clients get."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp

from sparktier.configs.settings.settings import GatewaySettings, ServerSettings, TierSettings
from sparktier.serving.clients.rank_facts import EngineLimits
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.access import Access
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.http.connections import Connection
from sparktier.serving.gateway.http.front import front
from sparktier.serving.gateway.replica_life import ReplicaLife, State
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.gateway.tier_resolution import TierTable
from support.scripted_replica import Script, json_answer, scripted_replica

EVERYBODY = Access(TierTable({3: TierSettings(name="standard", default=True)}, GatewaySettings()))
ASKED = {"model": "tiny", "prompt": "Hello"}
TOKEN = b'data: {"text":"a"}\n\n'
DONE = b"data: [DONE]\n\n"


def serving(number: int, url: str) -> Replica:
    limits = EngineLimits(vocab_size=512, context_tokens=256, token_characters=12)
    return Replica(number, url, ReplicaLife(State.SERVING), limits=limits)


@contextlib.asynccontextmanager
async def fronted(*replicas: Replica, grace_s: int = 1, **settings: Any) -> AsyncIterator[tuple[str, uvicorn.Server]]:
    """Yield the address of a front before `replicas`, and its server."""
    async with AsyncReplicaClient() as client:
        gateway = Gateway(ReplicaTable(replicas), ServerSettings(**settings), client, model="tiny", access=EVERYBODY)
        async with listening(front(gateway), grace_s=grace_s) as running:
            yield running


@contextlib.asynccontextmanager
async def listening(app: ASGIApp, *, grace_s: int = 1) -> AsyncIterator[tuple[str, uvicorn.Server]]:
    """Yield the address of a server of `app`, and the server."""
    config = uvicorn.Config(
        app, port=0, http=Connection, log_level="error", lifespan="off", timeout_graceful_shutdown=grace_s
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", server
    server.should_exit = True
    await running


@contextlib.asynccontextmanager
async def asked(script: Script, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Replica]]:
    """Yield a client of a front before one replica that runs `script`."""
    async with scripted_replica(script) as address:
        replica = serving(0, address)
        async with fronted(replica, **settings) as (url, _), httpx.AsyncClient(base_url=url) as client:
            yield client, replica


async def post(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json=ASKED | fields, timeout=30)


async def wait_for_hang_up(reader: asyncio.StreamReader) -> None:
    assert await reader.read() == b""


async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(json_answer(b"{}"))
