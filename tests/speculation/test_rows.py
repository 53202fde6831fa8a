"""How many rows each request verifies: never past its end, its tier's cap or the budget; against a loop in Python."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparktier.serving.engine.speculation.plan import Plan, Rung, TierShare
from sparktier.serving.engine.speculation.rows import row_counts, rung_tokens, tier_caps


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
    caps = tier_caps(Plan(tiers={3: TierShare(cap=1)}), device=torch.device("cpu"))
    assert caps[3] == 1
    assert caps[0] > 7
