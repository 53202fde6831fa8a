"""A reload of tiers: validated first, ids keep their names, an earlier file undoes it, replicas get it by one plan."""

from json import dumps
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.plan import Plan
from sparktier.configs.contracts.signals import CanaryReport, RankLoad, Signals, TierInForce
from sparktier.configs.errors import ConfigError, Problem, ReplicaUnreachable
from sparktier.configs.loading.loader import load_settings, settings_from
from sparktier.configs.settings.settings import Settings
from sparktier.serving.clients.operator_plan import operator_plan
from sparktier.serving.clients.replica import ReplicaAnswer
from sparktier.serving.gateway.replica_life import ReplicaLife, State
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.supervision.tier_plans import TierPlans
from sparktier.serving.supervision.tier_reload import TierBook, changes, waiting_sections

STANDARD = {"name": "standard", "default": True, "promise_tok_s": 80.0}
GOLD = {"name": "gold", "promise_tok_s": 120.0, "weight": 2.0}


def settings(tiers: dict[int, Any], **sections: Any) -> Settings:
    return settings_from({"model": {"path": "/m"}, "tiers": tiers, **sections})


FIRST = settings({0: STANDARD, 1: GOLD})
SLOWER = settings({0: STANDARD, 1: GOLD | {"promise_tok_s": 100.0, "cap_tokens": 3}})


def test_what_changed_is_told_by_tier_and_key() -> None:
    later = settings({0: STANDARD | {"weight": 0.5}, 2: {"name": "batch", "yields": True}})
    assert changes(FIRST.tiers, later.tiers) == [
        "tier 0 (standard): weight 1.0 -> 0.5",
        "tier 1 (gold) is gone; its id stays reserved",
        "tier 2 (batch) is new: {'name': 'batch', 'yields': True}",
    ]
    assert changes(FIRST.tiers, FIRST.tiers) == []


def test_an_id_that_named_a_tier_names_no_other_even_when_that_is_gone() -> None:
    book = TierBook.of(FIRST.tiers).reloaded(settings({0: STANDARD}).tiers)
    with pytest.raises(ConfigError) as caught:
        book.reloaded(settings({0: STANDARD, 1: {"name": "silver"}}).tiers)
    [problem] = caught.value.problems
    assert (problem.path, problem.value) == ("tiers.1.name", "silver")
    assert "must stay gold" in problem.rule
    assert book.reloaded(FIRST.tiers).tiers == FIRST.tiers


def test_a_tier_may_begin_to_yield_only_where_one_did_at_the_start() -> None:
    """Engines are started for it."""
    yielding = settings({0: STANDARD, 2: {"name": "batch", "yields": True}}).tiers
    with pytest.raises(ConfigError, match=r"tiers.2.yields: must be false"):
        TierBook.of(FIRST.tiers).reloaded(yielding)
    more = settings({0: STANDARD, 2: {"name": "batch", "yields": True}, 3: {"name": "more", "yields": True}}).tiers
    assert TierBook.of(yielding).reloaded(more).tiers == more


def test_other_sections_wait_for_a_restart() -> None:
    other = settings({0: STANDARD}, replicas={"count": 2}, server={"port": 81})
    assert waiting_sections(FIRST, other) == ["replicas", "server"]
    assert waiting_sections(FIRST, SLOWER) == []


class Replicas:
    """Replicas behind the client of `up`: they answer signals, and keep the plans they are sent."""

    def __init__(self) -> None:
        self.plans: list[tuple[str, Plan]] = []
        self.gone = False
        self.status = 200

    async def ask(self, method: str, url: str, *, timeout_s: float, json: object = None) -> ReplicaAnswer:
        if self.gone:
            raise ReplicaUnreachable("gone")
        if method == "GET":
            return ReplicaAnswer(200, signals().model_dump_json().encode())
        self.plans.append((url, read_message(Plan, dumps(json))))
        return ReplicaAnswer(self.status, b"a reason")


def signals(**changes: Any) -> Signals:
    fields: dict[str, Any] = {
        "replica_id": "replica-0",
        "epoch": 0,
        "seq": 1,
        "at_ms": 1,
        "plan_version": 0,
        "rung": 2,
        "rows": 40,
        "shares": {0: TierInForce(promise_tok_s=80.0, weight=1.0, cap_tokens=4)},
        "default_tier": 0,
        "ranks": (RankLoad(dp_rank=0, running={}, queued={}, kv_used_frac=0.0, context_tokens_p50=0),),
        "step_ms": {},
        "prefill_frac": 0.0,
        "accept_by_position": {},
        "tok_s_per_user": {},
        "canary": CanaryReport(state="off", scored_tokens=0, alarms=0),
    }
    return Signals(**(fields | changes))


def serving(number: int) -> Replica:
    return Replica(number, url=f"http://h:{number}", life=ReplicaLife(State.SERVING))


class RunningTiers:
    """A deployment's tiers, with a file that a test writes."""

    def __init__(self, tmp_path: Path, *, replicas: int = 1, start: Settings = FIRST) -> None:
        self.file = tmp_path / "config.yaml"
        self.clients, self.saved, self.lines = Replicas(), list[Settings](), list[str]()
        self.used, self.front_refuses = list[Settings](), False
        self.table = ReplicaTable(tuple(serving(number) for number in range(replicas)))
        self.write(start)
        self.tiers = TierPlans(
            start,
            self.table,
            self.clients,  # type: ignore[arg-type]
            load=lambda: load_settings(self.file),
            use=self.use,
            save=self.saved.append,
            log=self.lines.append,
        )

    def use(self, content: Settings) -> None:
        if self.front_refuses:
            raise ConfigError([Problem("tenants.a.tiers.0", "must be the name of a tier", "gold", "Name one.")])
        self.used.append(content)

    def write(self, content: Settings | str) -> None:
        self.file.write_text(content if isinstance(content, str) else yaml.safe_dump(content.model_dump()))


async def test_a_reload_reaches_every_replica_that_serves_by_one_plan(tmp_path: Path) -> None:
    up = RunningTiers(tmp_path, replicas=2)
    await up.tiers.send()
    assert not up.clients.plans
    up.write(SLOWER)
    up.tiers.reload()
    assert [one.tiers for one in up.saved] == [one.tiers for one in up.used] == [SLOWER.tiers]
    assert "tier 1 (gold): promise_tok_s 120.0 -> 100.0" in up.lines[-1]
    await up.tiers.send()
    await up.tiers.send()
    assert [url for url, _ in up.clients.plans] == ["http://h:0/sparktier/plan", "http://h:1/sparktier/plan"]
    plan = up.clients.plans[0][1]
    assert (plan.epoch, plan.ttl_ms, plan.default_tier) == (1, None, 0)
    assert (plan.tiers[1].name, plan.tiers[1].promise_tok_s, plan.tiers[1].weight) == ("gold", 100.0, 2.0)
    # Rung and rows are an operator's, and stay.
    [replica] = plan.replicas
    assert (replica.rung, replica.rows, replica.tiers[1].cap_tokens) == (2, 40, 3)


@pytest.mark.parametrize(
    "broken", ["tiers: {", "model: {path: /m}\ntiers: {0: {name: other, default: true}}\n", "model: {path: 3}\n"]
)
async def test_a_broken_file_leaves_the_old_in_force(broken: str, tmp_path: Path) -> None:
    up = RunningTiers(tmp_path)
    up.write(broken)
    up.tiers.reload()
    await up.tiers.send()
    assert (up.saved, up.clients.plans) == ([], [])
    assert all(line.startswith("tiers not reloaded: ") for line in up.lines)
    assert up.lines
    up.file.unlink()
    up.tiers.reload()
    assert "readable" in up.lines[-1]


async def test_tiers_that_the_front_can_not_use_are_not_taken(tmp_path: Path) -> None:
    up = RunningTiers(tmp_path)
    up.front_refuses = True
    up.write(SLOWER)
    up.tiers.reload()
    await up.tiers.send()
    assert not up.clients.plans
    assert "tenants.a.tiers.0" in up.lines[-1]
    assert [one.tiers for one in up.saved] == []


async def test_a_tier_that_the_running_gateway_names_can_not_go(tmp_path: Path) -> None:
    """The new file has another `gateway` section, which waits for a restart."""
    first = settings({0: STANDARD, 1: GOLD}, gateway={"priority_tier": "gold"})
    up = RunningTiers(tmp_path, start=first)
    up.write(settings({0: STANDARD}))
    up.tiers.reload()
    assert "gateway.priority_tier" in up.lines[-1]
    assert not up.saved


async def test_the_earlier_file_undoes_a_reload(tmp_path: Path) -> None:
    up = RunningTiers(tmp_path)
    for content in (SLOWER, FIRST):
        up.write(content)
        up.tiers.reload()
        await up.tiers.send()
    promises = [plan.tiers[1].promise_tok_s for _, plan in up.clients.plans]
    assert promises == [100.0, 120.0]
    assert up.saved[-1].tiers == FIRST.tiers


async def test_a_replica_that_starts_anew_is_sent_the_tiers_again(tmp_path: Path) -> None:
    up = RunningTiers(tmp_path)
    up.write(SLOWER)
    up.tiers.reload()
    await up.tiers.send()
    up.table.replicas[0].url = "http://h:77"
    await up.tiers.send()
    assert [url for url, _ in up.clients.plans] == ["http://h:0/sparktier/plan", "http://h:77/sparktier/plan"]


async def test_a_replica_that_does_not_answer_is_tried_again_and_a_refusal_is_told_once(tmp_path: Path) -> None:
    up = RunningTiers(tmp_path)
    up.write(SLOWER)
    up.tiers.reload()
    up.clients.gone = True
    await up.tiers.send()
    up.clients.gone, up.clients.status = False, 503
    await up.tiers.send()
    up.clients.status = 409
    await up.tiers.send()
    await up.tiers.send()
    assert len(up.clients.plans) == 2
    assert [line for line in up.lines if "keeps the tiers" in line] == ["replica 0 keeps the tiers it has: a reason"]


def test_a_plan_of_an_operator_keeps_what_it_does_not_name() -> None:
    plan = operator_plan(signals(), url="http://h:0", now_ms=500, rung=1)
    [replica] = plan.replicas
    assert (plan.version, replica.rung, replica.rows) == (500, 1, 40)
    assert (plan.tiers[0].promise_tok_s, replica.tiers[0].cap_tokens) == (80.0, 4)


@pytest.mark.parametrize(("epoch", "version", "expected"), [(1, 900, 901), (1, 400, 500), (3, 900, 500)])
def test_its_version_rises_within_its_epoch_and_gives_way_to_a_controller(
    epoch: int, version: int, expected: int
) -> None:
    plan = operator_plan(signals(epoch=epoch, plan_version=version), url="http://h:0", now_ms=500)
    assert (plan.epoch, plan.version) == (1, expected)
