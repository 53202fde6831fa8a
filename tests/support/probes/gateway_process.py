"""A gateway in a process of its own before a replica that runs already, for tests that kill it.

python -m support.probes.gateway_process REPLICA_URL KEYS_FILE USAGE_FOLDER PORT
"""

import asyncio
import sys
from pathlib import Path

import uvicorn

from sparktier.configs.loading.loader import load_settings, parse_overrides
from sparktier.serving.clients.rank_facts import read_ranks
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.clients.replica_keys import bearer, read_keys
from sparktier.serving.gateway.access import access_of
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.http.front import front
from sparktier.serving.gateway.replica_life import ReplicaLife, State
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.gateway.telemetry.instruments import Instruments, journal_of

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "test.yaml"


async def serve(url: str, keys_file: Path, folder: Path, port: int) -> None:
    """Serve until killed."""
    settings = load_settings(CONFIG, parse_overrides([f"usage.path={folder}", f"server.port={port}"]))
    keys = read_keys(keys_file)
    async with AsyncReplicaClient(bearer(keys.requests)) as client, AsyncReplicaClient(bearer(keys.admin)) as admin:
        ranks = await client.ask("GET", f"{url}/sparktier/ranks", timeout_s=60.0)
        limits = read_ranks(ranks.content)[0].limits()
        table = ReplicaTable((Replica(0, url, ReplicaLife(State.SERVING), limits=limits),))
        instruments = Instruments(settings, journal_of(settings), table, admin)
        gateway = Gateway(
            table,
            settings.server,
            client,
            model=settings.model.public_name,
            access=access_of(settings),
            meter=instruments.meter,
            observer=instruments.observer,
        )
        settling = asyncio.create_task(instruments.run())
        await uvicorn.Server(uvicorn.Config(front(gateway), port=port, log_level="warning", lifespan="off")).serve()
        settling.cancel()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
