"""What our code launches in a greedy step on a GPU, by phase, and that it nowhere makes the host wait.

SGLang's own launches (layers, attention, pools) are not counted; a phase without a budget launches nothing.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.configs.step_times import reference_table
from sparktier.serving.engine.requests import request_faults
from sparktier.serving.engine.speculation import decode_step, draft_step, verify_pass
from sparktier.serving.engine.speculation.decode_step import DecodeStep
from sparktier.serving.engine.speculation.deferred_injection import FeatureInjection
from sparktier.serving.engine.speculation.draft_step import DraftStep
from sparktier.serving.engine.speculation.pacing import Pacer
from sparktier.serving.engine.speculation.worker import LadderWorker
from support.launches import fake_step
from support.launches.counter import GRAPH, Launches, WouldWait

PHASES = {
    (LadderWorker, "_inputs"): "row counts",
    (DecodeStep, "_budget"): "row counts",
    (DraftStep, "run"): "draft tail",
    (draft_step, "_selected"): "selection",
    (draft_step, "chain_tree"): "selection",
    (verify_pass, "run"): "verify inputs",
    (verify_pass, "ancestor_words"): "words",
    (DecodeStep, "_accept"): "walk",
    (decode_step, "commit"): "commit",
    (DecodeStep, "_compact"): "move",
    (FeatureInjection, "inject"): "inject",
    (DecodeStep, "run"): "result",
}
# Launches at 16 users. The graph's are one for the host, whatever they are.
BUDGETS = {
    Rung.OFF: {"draft tail": 3, "verify inputs": 9, "walk": 2, "commit": 3, "inject": 3, "result": 7},
    Rung.CHAIN: {
        "draft tail": 3,
        GRAPH: 41,
        "verify inputs": 9,
        "walk": 2,
        "commit": 3,
        "inject": 6,
        "result": 7,
    },
    Rung.TREE: {
        "draft tail": 3,
        GRAPH: 240,
        "verify inputs": 9,
        "walk": 2,
        "commit": 3,
        "move": 8,
        "inject": 6,
        "result": 7,
    },
}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Counted launches of our code, by phase."""
    monkeypatch.setattr(decode_step, "Phases", lambda _device: SimpleNamespace(of=lambda _name: nullcontext()))
    # SGLang pins memory for it where there is a GPU.
    monkeypatch.setattr(request_faults, "async_d2h", lambda values: values.to("cpu", non_blocking=True))
    verify_pass._packed.cache_clear()
    with Launches() as counted:
        counted.watch(monkeypatch, PHASES)
        yield counted
    verify_pass._packed.cache_clear()


def launched(launches: Launches, *, rung: Rung, users: int, pacer: Pacer | None = None) -> dict[str, int]:
    worker, batch = fake_step.rank(launches, users=users, plan=EnginePlan(rung=rung), pacer=pacer)
    launches.by_phase.clear()
    fake_step.run(worker, batch)
    return launches.totals()


@pytest.mark.parametrize("rung", BUDGETS)
@pytest.mark.parametrize("users", [1, 16])
def test_a_greedy_step_stays_within_its_launches_and_never_waits(launches: Launches, rung: Rung, users: int) -> None:
    counted = launched(launches, rung=rung, users=users)
    budget = BUDGETS[rung]
    over = {phase: number for phase, number in counted.items() if number > budget.get(phase, 0)}
    assert not over, f"launched {counted}, of at most {budget}"
    if users == 16:
        assert counted == budget, "lower the budget to what is launched"


@pytest.mark.parametrize("rung", [Rung.CHAIN, Rung.TREE])
def test_the_planner_s_shares_of_earlier_drafts_wait_for_nothing(launches: Launches, rung: Rung) -> None:
    launched(launches, rung=rung, users=16, pacer=Pacer(StepTimeModel(reference_table("avx2")), live=False))


def test_live_shares_wait_for_the_drafts(launches: Launches) -> None:
    with pytest.raises(WouldWait, match="selection"):
        launched(launches, rung=Rung.TREE, users=16, pacer=Pacer(StepTimeModel(reference_table("avx2")), live=True))


@pytest.mark.parametrize(
    "wait",
    [
        lambda numbers: numbers.tolist(),
        lambda numbers: numbers[0, 0].item(),
        lambda numbers: numbers.nonzero(),
        lambda numbers: numbers[numbers > 0],
        lambda numbers: int(numbers.sum()),
        lambda numbers: numbers.cpu(),
        lambda numbers: torch.tensor([1, 2], device=numbers.device),
        lambda numbers: bool((numbers > 0).any()),
    ],
)
def test_what_waits_for_the_device_is_seen(launches: Launches, monkeypatch: pytest.MonkeyPatch, wait: Any) -> None:
    stock = decode_step.compaction_plan

    def waiting(**given: Any) -> Any:
        wait(given["slots"])
        return stock(**given)

    monkeypatch.setattr(decode_step, "compaction_plan", waiting)
    with pytest.raises(WouldWait, match="move"):
        launched(launches, rung=Rung.TREE, users=2)
