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
from sparktier.serving.engine.cuda import flashinfer_attention
from sparktier.serving.engine.cuda.flashinfer_attention import LadderFlashInfer
from sparktier.serving.engine.requests import request_faults
from sparktier.serving.engine.speculation import decode_step, draft_step, step_result, verify_pass
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
    (draft_step, "selected"): "selection",
    (draft_step, "chain_tree"): "selection",
    (verify_pass, "run"): "verify inputs",
    (verify_pass, "ancestor_words"): "words",
    (DecodeStep, "_accept"): "walk",
    (decode_step, "commit"): "commit",
    (LadderFlashInfer, "init_forward_metadata_out_graph"): "attention",
    (DecodeStep, "_compact"): "move",
    (FeatureInjection, "inject"): "inject",
    (DecodeStep, "run"): "result",
}
# Launches at 16 users, where requests have equal rows. The graph's are one for the host, whatever they are.
_AFTER = {"walk": 2, "commit": 1, "inject": 2, "result": 1}
BUDGETS = {
    Rung.OFF: {"draft tail": 3, "verify inputs": 1, "attention": 1, **_AFTER},
    Rung.CHAIN: {"draft tail": 3, GRAPH: 35, "verify inputs": 1, "attention": 1, **_AFTER},
    Rung.TREE: {"draft tail": 3, GRAPH: 234, "verify inputs": 1, "attention": 1, **_AFTER},
}
MOST_IN_ALL = 20
KEPT = (verify_pass._packed, verify_pass._in_step, flashinfer_attention._equal_rows)
# In SGLang's buckets of rows, where the layout is another than the step before; attention is SGLang's to prepare there.
OF_A_BUCKET = {"verify inputs": 9}

# What a lookup adds to them: where tokens are is staged, and a step's are noted; the rest is in the graph. A chain's
# survivals are needed, as a planner needs them.
LOOKUP, LOOKUP_IN_GRAPH = 11, 450


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Counted launches of our code, by phase."""
    monkeypatch.setattr(decode_step, "Phases", lambda _device: SimpleNamespace(of=lambda _name: nullcontext()))
    # SGLang pins memory for it where there is a GPU.
    monkeypatch.setattr(request_faults, "async_d2h", lambda values: values.to("cpu", non_blocking=True))
    for kept in KEPT:
        kept.cache_clear()
    with Launches() as counted:
        counted.watch(monkeypatch, PHASES)
        yield counted
    for kept in KEPT:
        kept.cache_clear()


def launched(
    launches: Launches,
    *,
    rung: Rung,
    users: int,
    pacer: Pacer | None = None,
    equal_rows: bool = True,
    looks_up: bool = False,
) -> dict[str, int]:
    """Launches of a step by phase; where rows are equal of the second, as tables of places are made once."""
    plan = EnginePlan(rung=rung)
    worker, batch = fake_step.rank(
        launches, users=users, plan=plan, pacer=pacer, equal_rows=equal_rows, looks_up=looks_up
    )
    for _ in range(2 if equal_rows else 1):
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
    assert sum(number for phase, number in counted.items() if phase != GRAPH) <= MOST_IN_ALL


@pytest.mark.parametrize("rung", BUDGETS)
def test_a_bucket_of_rows_costs_its_layout_beside(launches: Launches, rung: Rung) -> None:
    counted = launched(launches, rung=rung, users=16, equal_rows=False)
    counted.pop(GRAPH, None)
    budget = {phase: number for phase, number in BUDGETS[rung].items() if phase not in {"attention", GRAPH}}
    assert counted == budget | OF_A_BUCKET
    assert sum(counted.values()) <= MOST_IN_ALL


@pytest.mark.parametrize("rung", BUDGETS)
def test_a_lookup_adds_a_few_launches_to_a_step_and_no_wait(launches: Launches, rung: Rung) -> None:
    with_it = launched(launches, rung=rung, users=16, looks_up=True)
    added = {phase: number - BUDGETS[rung].get(phase, 0) for phase, number in with_it.items()}
    assert added.pop(GRAPH, 0) <= LOOKUP_IN_GRAPH, with_it
    assert sum(added.values()) <= LOOKUP, with_it


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
    stock = step_result.commit_of

    def waiting(**given: Any) -> Any:
        wait(given["slots"])
        return stock(**given)

    monkeypatch.setattr(step_result, "commit_of", waiting)
    with pytest.raises(WouldWait, match="commit"):
        launched(launches, rung=Rung.TREE, users=2)
