"""Our ceiling on SGLang's own DSpark planner: rungs, row budgets and tiers bind; without a plan nothing changes."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import planned_rows
from sparktier.configs.errors import ArtifactError
from sparktier.configs.plan_keys import TIER_PARAM, EnginePlan, Rung, TierTerms
from sparktier.configs.step_times import reference_table
from sparktier.serving.engine.speculation.pacing import Pacer
from support.sglang_rank import cpu_server_args, rank
from support.tiny_moe import make_tiny_moe

GAMMA, BATCH = 5, 4
SLOTS = torch.tensor([3, 1, 6, 2])

STRICT_SLOT, STRICT_TIER = 6, 2
_HEAD = SimpleNamespace()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """SGLang's process context of one rank, in which planners are made."""
    model = make_tiny_moe(tmp_path_factory.mktemp("planner"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_RAGGED_VERIFY_MODE", "compact")
        with rank(cpu_server_args(model), 0, 1):
            yield


def make_planner(kind: type, head: Any = _HEAD) -> Any:
    pool = SimpleNamespace(req_generation=torch.ones(8, dtype=torch.int64), req_to_token=torch.zeros(8, 1))
    return kind(
        draft_model=SimpleNamespace(confidence_head=head),
        gamma=GAMMA,
        model_runner=SimpleNamespace(decode_cuda_graph_runner=None, req_to_token_pool=pool),
        device="cpu",
        tp_rank=0,
        verify_num_draft_tokens=GAMMA + 1,
        tp_sync=SimpleNamespace(sync=lambda _site, values: values),
    )


CONFIDENCE = torch.linspace(0.95, 0.5, BATCH * GAMMA).view(BATCH, GAMMA)


def verified(planner: Any, confidence: torch.Tensor = CONFIDENCE) -> list[int]:
    """Rows of each request in one step, asked for as SGLang's worker does."""
    budget = planner.compute_budget_sync(
        confidence=confidence, prefix_lens=torch.full((BATCH,), 50), req_pool_indices=SLOTS
    )
    layout = planner.schedule_layout(
        req_pool_indices=SLOTS,
        prefix_lens=torch.full((BATCH,), 50),
        device=torch.device("cpu"),
        confidence=confidence,
        budget=budget,
    )
    rows: list[int] = layout.verify_lens.tolist()
    return rows


@pytest.fixture
def planner(context: None) -> Any:
    from sparktier.serving.engine.native.planned_verify import PlannedVerify

    tiers = torch.zeros(8, dtype=torch.int64)
    tiers[STRICT_SLOT] = STRICT_TIER
    planner = make_planner(PlannedVerify)
    planner.bind(tiers, pacer=None)
    return planner


def test_without_a_plan_sglang_decides(planner: Any) -> None:
    from sglang.srt.speculative.dspark_components.dspark_planner import DSparkVerifyPlanner

    assert verified(planner) == verified(make_planner(DSparkVerifyPlanner)) == [GAMMA + 1] * BATCH


@pytest.mark.parametrize(("rung", "rows"), [(Rung.OFF, 1), (Rung.CHAIN_SHORT, 3), (Rung.CHAIN, GAMMA + 1)])
def test_a_rung_bounds_every_request(planner: Any, rung: Rung, rows: int) -> None:
    planner.set_plan(EnginePlan(rung=rung))
    assert verified(planner) == [rows] * BATCH


def test_a_row_budget_bounds_the_step_and_goes_where_confidence_is(planner: Any) -> None:
    planner.set_plan(EnginePlan(rung=Rung.CHAIN, rows=10))
    rows = verified(planner)
    assert sum(rows) == 10
    assert rows == sorted(rows, reverse=True)
    assert rows[0] > rows[-1]


def test_a_tier_s_cap_bounds_its_requests_alone(planner: Any) -> None:
    planner.set_plan(EnginePlan(rung=Rung.CHAIN, tiers={STRICT_TIER: TierTerms(cap_tokens=1)}))
    assert verified(planner) == [2 if slot == STRICT_SLOT else GAMMA + 1 for slot in SLOTS.tolist()]


TABLE = StepTimeModel(reference_table("avx2"))
PACED = EnginePlan(rung=Rung.CHAIN, tiers={0: TierTerms(), STRICT_TIER: TierTerms(promise_tok_s=1000.0)})


def paced_planner(*, live: bool) -> Any:
    """One whose rows are paced; the strict request is far behind its promise."""
    from sparktier.serving.engine.native.planned_verify import PlannedVerify

    planner = make_planner(PlannedVerify)
    planner.bind(torch.zeros(8, dtype=torch.int64), pacer=Pacer(TABLE, live=live, clock=lambda: 100.0))
    planner.set_plan(PACED)
    planner.requests = [
        SimpleNamespace(
            rid=str(slot),
            sampling_params=SimpleNamespace(custom_params={TIER_PARAM: STRICT_TIER if slot == STRICT_SLOT else 0}),
            origin_input_ids=[1] * 9,
            output_ids=[2],
            sparktier_first_token_s=0.0,
        )
        for slot in SLOTS.tolist()
    ]
    return planner


def survivals(confidence: torch.Tensor) -> Any:
    return confidence.double().cumprod(dim=1).numpy()


@pytest.mark.parametrize("live", [False, True])
def test_paced_rows_are_our_planners_and_their_total_is_of_earlier_drafts(context: None, live: bool) -> None:
    """Where shares are live the total is by survivals of the step before, else both are by those SGLang relays."""
    planner = paced_planner(live=live)
    generator = torch.Generator().manual_seed(3)
    steps = [torch.rand(BATCH, GAMMA, generator=generator) ** 0.3 for _ in range(6)]
    for number, confidence in enumerate(steps):
        rows = verified(planner, confidence)
        lagged = planner._pace.step.offers
        if number < 3:
            continue
        lag = 1 if live else planner._budget_planner.carry_steps
        np.testing.assert_allclose(lagged.survival, survivals(steps[number - lag]), rtol=1e-5)
        offers = replace(lagged, survival=survivals(confidence)) if live else lagged
        assert rows == planned_rows(lagged, offers, TABLE, rung=Rung.CHAIN, context_tokens=10 * BATCH).tolist()
        expected = [float(row[: count - 1].sum()) for row, count in zip(offers.survival, rows, strict=True)]
        assert planner.expected == pytest.approx(expected)


def test_a_paced_step_gives_more_to_a_request_behind_its_promise(context: None) -> None:
    planner = paced_planner(live=True)
    even = torch.full((BATCH, GAMMA), 0.7)
    rows = [verified(planner, even) for _ in range(3)][-1]
    strict = SLOTS.tolist().index(STRICT_SLOT)
    assert all(rows[strict] > count for place, count in enumerate(rows) if place != strict)


def test_a_tiers_cap_and_rung_bound_paced_rows_too(context: None) -> None:
    planner = paced_planner(live=True)
    planner.set_plan(EnginePlan(rung=Rung.CHAIN_SHORT, tiers={0: TierTerms(), STRICT_TIER: TierTerms(cap_tokens=1)}))
    sure = torch.full((BATCH, GAMMA), 0.999)
    assert verified(planner, sure) == [2 if slot == STRICT_SLOT else 3 for slot in SLOTS.tolist()]
    planner.set_plan(EnginePlan(rung=Rung.OFF))
    assert verified(planner, sure) == [1] * BATCH
    assert planner.expected is None


def test_a_request_whose_tier_has_left_the_plan_is_paced_without_a_cap(context: None) -> None:
    planner = paced_planner(live=True)
    sure = torch.full((BATCH, GAMMA), 0.999)
    verified(planner, sure)
    planner.set_plan(EnginePlan(rung=Rung.CHAIN_SHORT))
    assert verified(planner, sure) == [3] * BATCH


def test_a_draft_without_a_confidence_head_starts_where_rows_differ_by_request(context: None) -> None:
    """On CPUs it starts anyway; on GPUs SGLang's own planner refuses it, though a ladder reads no confidence."""
    from sglang.srt.models import dspark
    from sglang.srt.speculative.dspark_components import dspark_worker_v2
    from sglang.srt.speculative.dspark_components.dspark_planner import DSparkVerifyPlanner

    from sparktier.serving.engine.speculation.worker_setup import HeadlessPlanner, headless

    with pytest.raises(ValueError, match="no confidence head"):
        make_planner(DSparkVerifyPlanner, head=None)
    planner = make_planner(HeadlessPlanner, head=None)
    assert (planner.is_compact_mode, planner.mode_value) == (True, "compact")
    stock = dspark.build_confidence_head
    with headless():
        assert dspark_worker_v2.DSparkVerifyPlanner is HeadlessPlanner
        # SGLang's models would insist on the head's weights there, and on CPUs build none.
        assert dspark.build_confidence_head(SimpleNamespace(enable_confidence_head=True)) is None
    assert dspark_worker_v2.DSparkVerifyPlanner is DSparkVerifyPlanner
    assert dspark.build_confidence_head is stock


@pytest.mark.parametrize(
    ("block", "trained", "refused"), [(7, 5, True), (5, 5, False), (3, 5, False), (7, None, False)]
)
def test_a_longer_block_than_the_draft_was_trained_for_is_refused(
    block: int, trained: int | None, refused: bool
) -> None:
    from sparktier.serving.engine.native.native_worker import require_trained_block

    with pytest.raises(ArtifactError, match="at most the 5") if refused else nullcontext():
        require_trained_block(block, trained)
