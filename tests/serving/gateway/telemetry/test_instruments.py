"""A gateway with all its instruments before a scripted replica: requests go on whatever becomes of their records."""

import contextlib
import errno
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from sparktier.configs.loading.loader import load_settings, parse_overrides
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.http.front import front
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.telemetry.instruments import Instruments, journal_of
from sparktier.serving.gateway.usage_log import journal as journal_module
from sparktier.serving.gateway.usage_log.journal import FILES
from sparktier.serving.gateway.usage_log.records import latest, records_in
from support.gateways.fronts import EVERYBODY, listening, post, serving
from support.scripted_replica import json_answer, scripted_replica

CONFIG = Path(__file__).resolve().parents[4] / "configs" / "test.yaml"
TIMES = {"arrived_at_ms": 1000, "ended_ms": 900.0, "prefill_ms": 5.0, "first_token_ms": 20.0, "attained_tok_s": 25.0}
USED = {"prompt_tokens": 4, "completion_tokens": 20, "total_tokens": 24}
ANSWER = json_answer(json.dumps({"choices": [{"text": "a"}], "usage": USED, "sparktier": TIMES}).encode())


@contextlib.asynccontextmanager
async def gateway(folder: Path | None) -> AsyncIterator[tuple[httpx.AsyncClient, Instruments]]:
    async def script(reader: object, writer: object, body: bytes) -> None:
        writer.write(ANSWER)  # type: ignore[attr-defined]

    settings = load_settings(CONFIG, parse_overrides([] if folder is None else [f"usage.path={folder}"]))
    async with scripted_replica(script) as url, AsyncReplicaClient() as upstream:
        table = ReplicaTable((serving(0, url),))
        instruments = Instruments(settings, journal_of(settings), table, upstream)
        core = Gateway(
            table,
            settings.server,
            upstream,
            model="tiny",
            access=EVERYBODY,
            meter=instruments.meter,
            observer=instruments.observer,
        )
        async with listening(front(core)) as (address, _), httpx.AsyncClient(base_url=address) as client:
            yield client, instruments
        instruments.close()


async def test_a_request_is_in_the_log_when_its_answer_is_there(tmp_path: Path) -> None:
    async with gateway(tmp_path / "usage") as (client, instruments):
        answer = await post(client)
        lines = [line for file in (tmp_path / "usage").glob(FILES) for line in file.read_bytes().splitlines()]
        [record] = latest(records_in(lines)).values()
        text = instruments.metrics.exposition()
    told = answer.json()["usage"]["sparktier"]
    # What the replica tells, and the wait before it.
    assert told.pop("ttft_ms") >= 20.0
    assert told == {"tier": "standard", "attained_tok_s": 25.0}
    assert (record.state, record.prompt_tokens, record.completion_tokens) == ("complete", 4, 20)
    assert (record.tier, record.request_id) == ("standard", answer.headers["x-request-id"])
    assert 'sparktier_gateway_user_tok_s_sum{tier="standard"} 25.0' in text


async def test_where_the_disk_is_full_requests_go_on_and_losses_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = os.write

    def write(descriptor: int, data: bytes) -> int:
        if b"engine_id" in bytes(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        return stock(descriptor, data)

    monkeypatch.setattr(journal_module.os, "write", write)
    async with gateway(tmp_path / "usage") as (client, instruments):
        answers = [await post(client) for _ in range(3)]
        text = instruments.metrics.exposition()
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    # Each request has a record before it is sent and one before its answer leaves.
    assert "sparktier_gateway_usage_lost_records_total 6.0" in text


async def test_without_a_path_there_is_no_log(tmp_path: Path) -> None:
    async with gateway(None) as (client, _):
        assert (await post(client)).status_code == 200
    assert not list(tmp_path.iterdir())
