"""What a replica tells of its ranks: never an old state as a new one, and an end of the wait for a rank that hangs."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import fastapi
import httpx
import pytest

from sparktier.configs.contracts.plan import Plan, ReplicaPlan, TierCaps, TierPromise
from sparktier.serving.engine.room import RoomKeeper, StartingRoom
from sparktier.serving.engine.telemetry import rank_reader as module
from sparktier.serving.engine.telemetry.admin_routes import admin_routes
from sparktier.serving.engine.telemetry.ended_requests import EndedRequests
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
        self.refused: str | None = None
        self.sent: list[dict[str, float]] = []

    def auto_create_handle_loop(self) -> None:
        pass

    async def get_internal_state_communicator(self, request: Any) -> list[Any]:
        self.asked += 1
        state = dump([rank_state(context_tokens_p50=self.asked, refused=self.refused)])
        await self.hangs.wait()
        return [SimpleNamespace(internal_state={STATES: state})]

    async def set_internal_state(self, request: Any) -> list[bool]:
        self.sent.append(request.server_args)
        await self.hangs.wait()
        return [self.refused is None]


def client(ranks: Ranks) -> httpx.AsyncClient:
    app = fastapi.FastAPI()
    app.include_router(
        admin_routes([], ranks, EndedRequests(), RoomKeeper(StartingRoom({0: 2, 5: None}, 0)), replica_id="replica-0")
    )
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


PLAN = Plan(
    epoch=2,
    version=9,
    issued_at_ms=1,
    ttl_ms=500,
    default_tier=1,
    tiers={1: TierPromise(name="strict", promise_tok_s=120.0)},
    replicas=(
        ReplicaPlan(replica_id="replica-0", url="http://h:1", state="serving", rung=2, rows=7, tiers={}),
        ReplicaPlan(replica_id="replica-1", url="http://h:2", state="serving", rung=0, rows=0, tiers={}),
    ),
)


async def test_a_plan_reaches_the_ranks_as_keys() -> None:
    ranks = Ranks()
    async with client(ranks) as replica:
        answer = await replica.post("/sparktier/plan", content=PLAN.model_dump_json())
    assert (answer.status_code, answer.json()) == (200, {"epoch": 2, "version": 9})
    assert ranks.sent == [
        {
            "sparktier_epoch": 2,
            "sparktier_plan_version": 9,
            "sparktier_ttl_ms": 500,
            "sparktier_rung": 2,
            "sparktier_rows": 7,
            "sparktier_default_tier": 1,
            "sparktier_tier1_promise": 120.0,
            "sparktier_tier1_weight": 1.0,
        }
    ]


async def test_the_sender_of_a_refused_plan_is_told_why() -> None:
    ranks = Ranks()
    async with client(ranks) as replica:
        assert await told(replica) == 1
        ranks.refused = "sparktier_epoch must rise"
        answer = await replica.post("/sparktier/plan", content=PLAN.model_dump_json())
    assert answer.status_code == 409
    assert answer.json()["error"] == "The ranks refused the plan: sparktier_epoch must rise"
    # The reason is in a state that was asked for after the plan.
    assert ranks.asked == 2


async def test_signals_after_a_plan_are_of_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    monkeypatch.setattr(module, "_FRESH_S", 600.0)
    async with client(ranks) as replica:
        first = (await replica.get("/sparktier/signals")).json()
        assert (await replica.get("/sparktier/signals")).json() == first
        await replica.post("/sparktier/plan", content=PLAN.model_dump_json())
        second = (await replica.get("/sparktier/signals")).json()
    assert (first["seq"], second["seq"], ranks.asked) == (1, 2, 2)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (PLAN.model_dump_json().replace('"schema_version":2', '"schema_version":1'), "schema_version must be 2"),
        (PLAN.model_dump_json().replace("120.0", "NaN"), "finite"),
        (PLAN.model_dump_json().replace("replica-0", "replica-7"), "must list replica-0"),
        ("{", "must be JSON"),
    ],
)
async def test_what_is_no_plan_for_this_replica_is_refused(body: str, word: str) -> None:
    ranks = Ranks()
    async with client(ranks) as replica:
        answer = await replica.post("/sparktier/plan", content=body)
    assert answer.status_code == 400
    assert word in answer.json()["error"]
    assert not ranks.sent


async def test_a_plan_that_a_rank_hangs_on_is_sent_once() -> None:
    ranks = Ranks()
    ranks.hangs.clear()
    async with client(ranks) as replica:
        first = await replica.post("/sparktier/plan", content=PLAN.model_dump_json())
        second = await replica.post("/sparktier/plan", content=PLAN.model_dump_json())
        assert (first.status_code, second.status_code) == (503, 503)
        assert "on its way" in second.json()["error"]
        assert len(ranks.sent) == 1
        ranks.hangs.set()
        await asyncio.sleep(0.02)
        assert (await replica.post("/sparktier/plan", content=PLAN.model_dump_json())).status_code == 200


async def test_a_request_that_comes_when_a_rank_is_late_already_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    ranks.hangs.clear()
    monotonic = [1000.0]
    monkeypatch.setattr(module, "_LATE_S", 600.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: monotonic[0], time=time.time))
    async with client(ranks) as replica:
        waits = asyncio.create_task(replica.get("/sparktier/signals"))
        await asyncio.sleep(0.01)
        monotonic[0] += 601
        late = await asyncio.wait_for(replica.get("/sparktier/signals"), 10)
        assert late.status_code == 503
        ranks.hangs.set()
        assert (await waits).status_code == 200


async def test_an_order_reaches_the_ranks_and_the_log_has_its_actor(caplog: pytest.LogCaptureFixture) -> None:
    ranks = Ranks()
    order = {"schema_version": 2, "latched": True, "actor": "ann\nforged line", "reason": "drill"}
    async with client(ranks) as replica:
        answer = await replica.post("/sparktier/latch", json=order)
        assert (answer.status_code, answer.json()) == (200, {"latched": True})
        assert (await replica.post("/sparktier/latch", json=order | {"latched": False})).status_code == 200
        assert (await replica.post("/sparktier/latch", json=order | {"actor": ""})).status_code == 400
        ranks.refused = "depth is fixed"
        answer = await replica.post("/sparktier/latch", json=order)
    assert (answer.status_code, "fixed" in answer.json()["error"]) == (409, True)
    assert ranks.sent[:2] == [{"sparktier_latch": 1.0}, {"sparktier_latch": 0.0}]
    told = [record.getMessage() for record in caplog.records if "speculation" in record.getMessage()]
    assert told == [
        "speculation is latched off by order of 'ann\\nforged line': 'drill'",
        "speculation is resumed by order of 'ann\\nforged line': 'drill'",
    ]


async def test_a_plan_s_caps_are_read_back_and_a_refused_plan_s_are_not() -> None:
    capped = PLAN.replicas[0].model_copy(update={"tiers": {1: TierCaps(cap_users=3)}, "state": "draining"})
    plan = PLAN.model_copy(update={"replicas": (capped,)})
    ranks = Ranks()
    async with client(ranks) as replica:
        first = (await replica.get("/sparktier/signals")).json()
        ranks.refused = "sparktier_epoch must rise"
        await replica.post("/sparktier/plan", content=plan.model_dump_json())
        kept = (await replica.get("/sparktier/signals")).json()
        ranks.refused = None
        await replica.post("/sparktier/plan", content=plan.model_dump_json())
        after = (await replica.get("/sparktier/signals")).json()
    assert [(told["state"], told["caps"]) for told in (first, kept, after)] == [
        ("serving", {"0": 2}),
        ("serving", {"0": 2}),
        ("draining", {"1": 3}),
    ]
