"""How many rows each request verifies: never past its end, its tier's cap or the budget; against a loop in Python."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PretrainedConfig

from sparktier.configs.plan_keys import EnginePlan, Rung, TierTerms
from sparktier.kernels.expand import MarkovHead, Shape, expand_top
from sparktier.serving.engine.rank_options import LadderOptions, TreeBounds
from sparktier.serving.engine.speculation.draft_step import selected
from sparktier.serving.engine.speculation.row_budget import (
    StepBudget,
    row_counts,
    rung_tokens,
    step_budget,
    tier_caps,
)


def one_by_one(draft_tokens: int, row_budget: int, caps: list[int], useful: list[int]) -> list[int]:
    """Hand drafted rows out round by round, a round being one more row for everybody who wants one."""
    wanted = [max(0, min(cap, depth, draft_tokens)) for cap, depth in zip(caps, useful, strict=True)]
    if not row_budget:
        return [rows + 1 for rows in wanted]
    given_out = [0] * len(wanted)
    spare = max(0, row_budget - len(wanted))
    for level in range(1, draft_tokens + 1):
        for request, want in enumerate(wanted):
            if want >= level and spare:
                given_out[request] += 1
                spare -= 1
    return [rows + 1 for rows in given_out]


requests = st.lists(st.tuples(st.integers(0, 9), st.integers(-2, 12)), min_size=1, max_size=8)


@given(requests=requests, draft_tokens=st.integers(0, 7), row_budget=st.integers(0, 40))
def test_rows_are_those_of_handing_them_out_one_by_one(
    requests: list[tuple[int, int]], draft_tokens: int, row_budget: int
) -> None:
    caps, useful = (list(column) for column in zip(*requests, strict=True))
    rows = row_counts(
        draft_tokens=draft_tokens, row_budget=row_budget, caps=torch.tensor(caps), useful=torch.tensor(useful)
    ).tolist()
    assert rows == one_by_one(draft_tokens, row_budget, caps, useful)
    assert all(1 <= count <= max(1, depth + 1) for count, depth in zip(rows, useful, strict=True))
    assert not row_budget or sum(rows) <= max(row_budget, len(rows))


def test_rungs_and_caps() -> None:
    lengths = [rung_tokens(rung, block_tokens=7, short_tokens=2, tree_rows=16) for rung in Rung]
    assert lengths == [0, 2, 7, 15]
    caps = tier_caps(EnginePlan(tiers={3: TierTerms(cap_tokens=1)}), device=torch.device("cpu"))
    assert caps[3] == 1
    assert caps[0] > 7


def test_no_rung_of_a_chain_is_longer_than_the_block() -> None:
    lengths = [rung_tokens(rung, block_tokens=5, short_tokens=8, tree_rows=16) for rung in Rung]
    assert lengths == [0, 5, 5, 15]


@pytest.mark.parametrize(
    ("asked", "trained", "drafted"), [(None, 5, 5), (3, 5, 3), (9, 5, 5), (9, None, 9), (None, None, None)]
)
def test_no_block_is_longer_than_the_draft_was_trained_for(
    asked: int | None, trained: int | None, drafted: int | None
) -> None:
    assert LadderOptions(short_tokens=2, block_tokens=asked).block(trained) == drafted


def test_a_worker_draws_the_trained_block_and_says_what_it_cut(caplog: pytest.LogCaptureFixture) -> None:
    from sglang.srt.speculative.dspark_components import dspark_worker_v2

    from sparktier.serving.engine.speculation.worker_setup import wide_window

    draft = {"num_hidden_layers": 2, "block_size": 5, "mask_token_id": 3, "markov_rank": 4}
    config = PretrainedConfig(**draft, markov_head_type="vanilla", dflash_config={})
    with wide_window(LadderOptions(short_tokens=2, block_tokens=9)):
        found = dspark_worker_v2.resolve_runtime_config(
            draft_hf_config=config, speculative_num_draft_tokens=10, target_vocab_size=256
        )
    assert (found.gamma, found.verify_num_draft_tokens) == (5, 6)
    assert "block_tokens 9 is cut to the draft's block of 5" in caplog.text


LADDER = LadderOptions(short_tokens=2, tree=TreeBounds(rows=12, parents=4, children=3))


@pytest.mark.parametrize(
    ("rung", "shape", "rows", "width", "branching"),
    [
        (Rung.OFF, Shape(0, 1, 1), [1, 1, 1, 1], 1, False),
        (Rung.CHAIN_SHORT, Shape(2, 1, 1), [3, 1, 2, 2], 3, False),
        (Rung.CHAIN, Shape(5, 1, 1), [6, 1, 2, 2], 6, False),
        (Rung.TREE, Shape(5, 4, 3), [12, 1, 12, 2], 12, True),
    ],
)
def test_a_step_s_budget_follows_rung_room_and_caps(
    rung: Rung, shape: Shape, rows: list[int], width: int, branching: bool
) -> None:
    """A request with much room, one at its end, one that may emit two tokens more, and one whose tier is capped."""
    room, caps = torch.tensor([99, 1, 2, 99]), torch.tensor([99, 99, 99, 1])
    budget = step_budget(EnginePlan(rung=rung), LADDER, block_tokens=5, caps=caps, room=room)
    assert (budget.shape, budget.width, budget.branching) == (shape, width, branching)
    assert budget.row_counts.tolist() == rows
    assert budget.useful.tolist() == [98, 0, 1, 98]


@given(shape=st.builds(Shape, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), seed=st.integers(0, 2**31))
def test_no_tree_has_more_rows_than_its_bound_on_the_host(shape: Shape, seed: int) -> None:
    """A GPU verifies that many rows, whatever its trees hold."""
    generator = torch.Generator().manual_seed(seed)
    vocab, batch, width = 7, 5, 9
    head = MarkovHead(*(torch.randn(2, vocab, 3, generator=generator)))
    candidates = expand_top(
        anchors=torch.zeros(batch, dtype=torch.int64),
        block_logits=torch.randn(batch, shape.depth, vocab, generator=generator),
        head=head,
        temperatures=torch.ones(batch),
        shape=shape,
        edge_acceptance=lambda q, _depth: q.round(decimals=1),
    )
    useful = torch.randint(-2, 5, (batch,), generator=generator)
    counts = torch.randint(1, width + 1, (batch,), generator=generator)
    budget = StepBudget(width - 1, True, shape, counts, useful)
    tree = selected(candidates, budget, drawn=False).selection.tree
    assert bool((tree.row_counts <= budget.most_rows).all())
    assert bool((budget.most_rows <= counts).all())


def test_a_step_s_rows_stay_within_the_plan_s() -> None:
    room = torch.tensor([99, 99, 99])
    budget = step_budget(EnginePlan(rung=Rung.TREE, rows=10), LADDER, block_tokens=5, caps=room, room=room)
    assert budget.row_counts.tolist() == [4, 3, 3]
