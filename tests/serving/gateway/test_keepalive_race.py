"""Our clients of a replica that closes a kept connection as the next request comes in, as uvicorn does after 5 s."""

import asyncio

import pytest
import torch
from safetensors.torch import save

from sparktier.configs.errors import ReplicaError
from sparktier.drafter.data.answers import Answer
from sparktier.serving.bench.measured_replica import MeasuredReplica
from sparktier.serving.drafting.feature_client import EngineFeatures
from support.scripted_replica import Script, json_answer, scripted_replica


def answers_once(body: bytes) -> Script:
    """Return a script that answers a connection's first request and closes at its second."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(json_answer(body))
        await writer.drain()
        await reader.read(1)

    return script


async def test_the_benchs_requests() -> None:
    async with scripted_replica(answers_once(b'{"usage": {"completion_tokens": 7}}')) as url:
        target = MeasuredReplica(url, key="a key")
        for _ in range(2):
            assert await asyncio.to_thread(target.answer, "Hi", max_tokens=7, temperature=0.0, seed=1) == 7


async def test_records_of_features() -> None:
    record = {"features": torch.zeros(3, 4), "last_hidden": torch.zeros(3, 2)}
    async with scripted_replica(answers_once(save(record))) as url:
        features = EngineFeatures(url, [Answer("", (1, 2), (3,))] * 4, ahead=0, key="a key")
        records = await asyncio.to_thread(lambda: list(features.produce(iter(range(4)))))
    assert [len(record.token_ids) for record in records] == [3] * 4


async def test_a_replica_that_is_gone_is_one_clear_line() -> None:
    async def hangs_up(*_: object) -> None:
        pass

    async with scripted_replica(hangs_up) as url:
        for ask in (
            MeasuredReplica(url, key="a key").totals,
            lambda: MeasuredReplica(url, key="a key").chat("Hi", max_tokens=1),
            lambda: MeasuredReplica(url, key="a key").set_plan(rung=0),
        ):
            with pytest.raises(ReplicaError, match=r"must answer .*ServerDisconnectedError.*log"):
                await asyncio.to_thread(ask)
