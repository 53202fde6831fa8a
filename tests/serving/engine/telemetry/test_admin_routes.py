"""What a replica tells of its ranks: never an old state as a new one, and an end of the wait for a rank that hangs."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import fastapi
import httpx
import pytest

from sparktier.serving.engine.telemetry import admin_routes as module
from sparktier.serving.engine.telemetry.admin_routes import admin_routes
from sparktier.serving.engine.telemetry.observer import STATES
from sparktier.serving.engine.telemetry.rank_state import dump
from support.rank_states import rank_state

ROUTES = ["/sparktier/signals", "/sparktier/metrics", "/metrics"]


class Ranks:
    """One rank behind SGLang's tokenizer manager; it counts what it is asked and hangs while told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.hangs = asyncio.Event()
        self.hangs.set()

    def auto_create_handle_loop(self) -> None:
        pass

    async def get_internal_state_communicator(self, request: Any) -> list[Any]:
        self.asked += 1
        state = dump([rank_state(context_tokens_p50=self.asked)])
        await self.hangs.wait()
        return [SimpleNamespace(internal_state={STATES: state})]


def client(ranks: Ranks) -> httpx.AsyncClient:
    app = fastapi.FastAPI()
    app.include_router(admin_routes([], ranks, replica_id="replica-0"))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica")


async def told(replica: httpx.AsyncClient) -> int:
    answer = await replica.get("/sparktier/signals")
    assert answer.status_code == 200, answer.text
    return int(answer.json()["ranks"][0]["context_tokens_p50"])


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(module, "_LATE_S", 0.05)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))


async def test_a_clock_that_is_set_back_makes_no_old_state_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    monotonic, day = [1000.0], [time.time()]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: monotonic[0], time=lambda: day[0]))
    async with client(ranks) as replica:
        assert await told(replica) == 1
        day[0] -= 3600
        monotonic[0] += 1.0
        assert await told(replica) == 2
        assert await told(replica) == 2
        monotonic[0] += 1.0
        answer = await replica.get("/sparktier/signals")
    assert answer.json()["at_ms"] == pytest.approx(day[0] * 1000, abs=1)


@pytest.mark.parametrize("path", ROUTES)
async def test_a_rank_that_hangs_is_told_of_and_asked_once(path: str) -> None:
    ranks = Ranks()
    ranks.hangs.clear()
    async with client(ranks) as replica:
        answers = await asyncio.wait_for(asyncio.gather(*(replica.get(path) for _ in range(5))), 10)
        answers.append(await asyncio.wait_for(replica.get(path), 10))
        assert {answer.status_code for answer in answers} == {503}
        assert "Every rank must answer between two steps" in answers[0].json()["error"]
        assert ranks.asked == 1
        ranks.hangs.set()
        await asyncio.sleep(0.02)
        assert (await replica.get(path)).status_code == 200


async def test_a_scraper_that_goes_away_takes_no_other_answer_along() -> None:
    ranks = Ranks()
    ranks.hangs.clear()
    async with client(ranks) as replica:
        gone, stays = (asyncio.create_task(replica.get("/sparktier/signals")) for _ in range(2))
        await asyncio.sleep(0.01)
        gone.cancel()
        ranks.hangs.set()
        assert (await stays).status_code == 200


async def test_an_answer_that_breaks_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    working = ranks.get_internal_state_communicator

    async def broken(request: Any) -> list[Any]:
        raise RuntimeError("a broken answer")

    async with client(ranks) as replica:
        monkeypatch.setattr(ranks, "get_internal_state_communicator", broken)
        with pytest.raises(RuntimeError):
            await replica.get("/sparktier/signals")
        monkeypatch.setattr(ranks, "get_internal_state_communicator", working)
        assert await told(replica) == 1
