"""Without promises and with equal weights the planner is SGLang's own, in ties and at its smallest survival too."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.kernels.ops.speculative.dspark.dspark_schedule import ScheduleVerifyLensTopk
from sglang.srt.speculative.dspark_components.dspark_planner import DSparkScheduleConfig, compute_verify_token_budget
from sglang.srt.speculative.dspark_components.dspark_sps import SpsAdditiveCostTable, SpsCostTable

from sparktier.cluster.arrays import Floats
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import LEAST_SURVIVAL, Offers, best_total, share_out
from sparktier.configs.step_times import StepTimeTable
from support.step_tables import key

EPS = DSparkScheduleConfig(gamma=1).survival_eps
MOST_REQUESTS, MOST_DEPTH = 4, 4
# Any float32, its neighbours around SGLang's smallest survival, and values that make ties.
ANY = st.one_of(
    st.floats(0.0, 1.0, width=32),
    st.sampled_from([0.0, 0.5, 1.0, EPS, *(float(np.nextafter(np.float32(EPS), np.float32(to))) for to in (0, 1))]),
)
# Products and sums of these are exact in float32, so ties are ties however a ratio is reckoned.
EXACT = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
# Times whose inverses, by a common multiple, are whole: SGLang's staircase is one of steps a second.
STAIRS_MS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0)
STEPS_PER_MS = 2520.0


@st.composite
def confidences(draw: st.DrawFn, values: st.SearchStrategy[float]) -> torch.Tensor:
    requests, depth = draw(st.integers(1, MOST_REQUESTS)), draw(st.integers(1, MOST_DEPTH))
    drawn = draw(st.lists(values, min_size=requests * depth, max_size=requests * depth))
    return torch.tensor(drawn, dtype=torch.float32).view(requests, depth)


def survival_of(confidence: torch.Tensor) -> torch.Tensor:
    return torch.cumprod(confidence, dim=1)


def offered(confidence: torch.Tensor) -> Offers:
    """Offers of equal weight, all of the block allowed."""
    survival: Floats = survival_of(confidence).double().numpy()
    requests, depth = survival.shape
    return Offers(survival, np.full(requests, depth + 1, dtype=np.int64), np.ones(requests))


def config(confidence: torch.Tensor) -> DSparkScheduleConfig:
    return DSparkScheduleConfig(gamma=confidence.shape[1])


def model_of(per_rows_ms: tuple[tuple[int, float], ...], base_ms: float, buckets: tuple[int, ...]) -> StepTimeModel:
    return StepTimeModel(
        StepTimeTable(
            key=key(buckets),
            source="drawn",
            base_ms=base_ms,
            per_requests_ms=((1, 0.0),),
            per_rows_ms=per_rows_ms,
            draft_ms={2: ((1, 0.0),)},
            per_context_ms=0.0,
            prefill_ms=((1, 0.0),),
            error_frac_p50=None,
            error_frac_p90=None,
        )
    )


@given(confidences(ANY), st.integers(0, 40))
def test_rows_are_those_of_sglang(confidence: torch.Tensor, budget: int) -> None:
    theirs = ScheduleVerifyLensTopk.torch(confidence=confidence, budget=budget, cfg=config(confidence))
    assert share_out(offered(confidence), len(confidence) + budget).tolist() == theirs.tolist()


@given(confidences(EXACT), st.integers(0, 40))
def test_rows_of_equals_are_those_of_sglang(confidence: torch.Tensor, budget: int) -> None:
    theirs = ScheduleVerifyLensTopk.torch(confidence=confidence, budget=budget, cfg=config(confidence))
    assert share_out(offered(confidence), len(confidence) + budget).tolist() == theirs.tolist()


def test_the_least_survival_is_that_of_sglang() -> None:
    for to in (0, 1):
        near = float(np.nextafter(np.float32(EPS), np.float32(to)))
        assert (near >= LEAST_SURVIVAL) == bool(torch.tensor(near) >= EPS)
    assert bool(torch.tensor(EPS) >= EPS)
    assert float(np.float32(EPS)) >= LEAST_SURVIVAL


@settings(max_examples=300)
@given(
    st.one_of(confidences(EXACT), confidences(ANY)),
    st.sets(st.integers(2, MOST_REQUESTS * MOST_DEPTH), max_size=6).map(sorted),
    st.lists(st.sampled_from(STAIRS_MS), min_size=7, max_size=7).map(sorted),
)
def test_the_total_is_that_of_sglang_on_any_staircase(
    confidence: torch.Tensor, edges: list[int], stairs_ms: list[float]
) -> None:
    """SGLang's stairs begin at an edge, ours end at one: a pass is filled up."""
    begins = [1, *edges]
    sps = SpsCostTable(
        sample_batch_tokens=begins,
        sample_steps_per_sec=[STEPS_PER_MS / ms for ms in stairs_ms[: len(begins)]],
        max_batch_tokens=1_000,
    )
    ends = tuple([edge - 1 for edge in edges] + [1_000])
    base_ms, steps = stairs_ms[0], [ms - stairs_ms[0] for ms in stairs_ms]
    model = model_of(tuple(zip(ends, steps, strict=False)), base_ms, ends)
    theirs = compute_verify_token_budget(
        history_survival_probs=survival_of(confidence), sps_table=sps, cfg=config(confidence)
    )
    assert best_total(offered(confidence), model, rung=2) == len(confidence) + theirs.budget


@settings(max_examples=300)
@given(st.one_of(confidences(EXACT), confidences(ANY)), st.integers(1, 9), st.integers(0, 9), st.integers(0, 9))
def test_the_total_is_that_of_sglang_on_additive_times(
    confidence: torch.Tensor, base: int, early: int, late: int
) -> None:
    """Two slopes. In seconds these times are whole, in ms a thousand times that: neither rounds."""
    points = ((1, float(early)), (11, 11.0 * early), (51, 11.0 * early + 40.0 * late))
    model = model_of(tuple((count, 1000.0 * ms) for count, ms in points), 1000.0 * base, ())
    sps = SpsAdditiveCostTable(
        bias_seconds=float(base),
        bs_probes=[1],
        alpha_seconds=[0.0],
        m_probes=[count for count, _ in points],
        theta_seconds=[ms for _, ms in points],
    )
    theirs = compute_verify_token_budget(
        history_survival_probs=survival_of(confidence), sps_table=sps, cfg=config(confidence)
    )
    assert best_total(offered(confidence), model, rung=2) == len(confidence) + theirs.budget
