"""Groups whose passes are of one size: what a nearly idle one makes of the rows that another's load pays for."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.configs.step_times import reference_table
from sparktier.serving.engine.plan.group_step import GroupStep, Wish, agreed
from sparktier.serving.engine.speculation.group_pass import padded
from sparktier.serving.engine.speculation.pacing import Pacer

BUCKETS = (6, 12, 24, 48)
NODES, STEPS = 7, 150
PLAN = EnginePlan(rung=Rung.CHAIN)


def runner(most_requests: int) -> Any:
    graphs = SimpleNamespace(ragged_verify_mode=True, capture_num_tokens=list(BUCKETS), max_bs=most_requests)
    attention = SimpleNamespace(supports_ragged_verify_graph=True)
    return SimpleNamespace(decode_cuda_graph_runner=graphs, attn_backend=attention)


def group_step(rows: int, requests: Sequence[int]) -> GroupStep:
    return agreed([Wish(2, rows), Wish(2, 1)], requests, unit=1)


@pytest.mark.parametrize(
    ("rows", "requests", "expected", "in_graph"),
    [
        (13, [4, 1], 24, True),
        (24, [4, 0], 24, True),
        # More rows, or more requests in one of the groups, than any graph has: all groups run without.
        (50, [8, 1], 50, False),
        (24, [9, 1], 24, False),
    ],
)
def test_every_group_finds_the_same_bucket(rows: int, requests: list[int], expected: int, in_graph: bool) -> None:
    found = []
    for _ in requests:
        batch = SimpleNamespace(can_run_decode_cuda_graph=True)
        found.append((padded(group_step(rows, requests), runner(8), batch).rows, batch.can_run_decode_cuda_graph))
    assert found == [(expected, in_graph)] * 2


class Group:
    """A group's planner over requests whose drafts are accepted with `chance` at each position."""

    def __init__(self, name: str, requests: int, chance: float, seed: int) -> None:
        params = SimpleNamespace(custom_params=None)
        self.requests = [
            SimpleNamespace(rid=f"{name}{n}", sampling_params=params, origin_input_ids=[1] * 9, output_ids=[2])
            for n in range(requests)
        ]
        self.most_rows = torch.full((requests,), NODES + 1)
        self.pacer = Pacer(TIMES, live=False, clock=lambda: 1.0)
        self.rng, self.chance = np.random.default_rng(seed), chance
        self.rows = self.tokens = 0

    def wish(self) -> Wish:
        step = self.pacer.planned(self.requests, PLAN, most_rows=self.most_rows, nodes=NODES)
        return Wish(int(PLAN.rung), step.total)

    def step(self, total: int) -> None:
        """Share out `total` rows, and accept drafts by chance."""
        pace = self.pacer.begin(self.requests, PLAN, most_rows=self.most_rows, nodes=NODES, total=total)
        # A drafter that knows its chances, more or less.
        chances = np.clip(self.chance + self.rng.normal(0.0, 0.1, (len(self.requests), NODES)), 0.05, 0.95)
        anchors = torch.ones(len(self.requests), 1)
        survival = torch.cat((anchors, torch.from_numpy(chances.cumprod(axis=1))), dim=1)
        rows = pace.row_counts(survival, drawn=False).row_counts.numpy()
        kept = (self.rng.random(chances.shape) < chances).cumprod(axis=1).sum(axis=1)
        self.rows += int(rows.sum())
        self.tokens += int((1 + np.minimum(kept, rows - 1)).sum())


TIMES = StepTimeModel(reference_table("production"))


def together(sizes: Sequence[int], chance: float) -> tuple[list[Group], float]:
    """Groups of `sizes` requests after some steps, and how long those took in ms: as long as the most rows take."""
    groups, took_ms = [Group(str(n), size, chance, n) for n, size in enumerate(sizes)], 0.0
    for _ in range(STEPS):
        step = agreed([group.wish() for group in groups], sizes, unit=1)
        took_ms += step_ms(PLAN.rung, step.requests, step.rows)
        for group in groups:
            group.step(step.rows)
    return groups, took_ms


def step_ms(rung: Rung, requests: int, rows: int) -> float:
    return float(TIMES.step_ms(rung=int(rung), requests=requests, rows=np.array([rows]))[0])


def test_a_nearly_idle_group_uses_the_rows_that_a_full_one_pays_for() -> None:
    (full, lone), _ = together((24, 1), 0.4)
    (alone,), _ = together((1,), 0.4)
    assert lone.rows > 1.2 * alone.rows
    assert lone.tokens > alone.tokens
    # Nothing is taken from the full one.
    (only,), _ = together((24,), 0.4)
    assert full.rows == only.rows


@pytest.mark.parametrize("sizes", [(24, 1), (8, 8), (16, 4), (2, 1)])
@pytest.mark.parametrize("chance", [0.5, 0.7, 0.9])
def test_a_pair_of_groups_is_no_slower_than_without_drafts(sizes: tuple[int, int], chance: float) -> None:
    groups, took_ms = together(sizes, chance)
    off_ms = STEPS * step_ms(Rung.OFF, max(sizes), max(sizes))
    assert sum(group.tokens for group in groups) / took_ms > STEPS * sum(sizes) / off_ms
