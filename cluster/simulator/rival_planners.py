"""Rivals of the verify planner, for simulations alone: floors of tokens per step, and AdaServe's selection.

The third rival, fixed weights by tier, is the planner itself with `PaceRules(gain=0)`.
"""

from dataclasses import replace

import numpy as np

from sparktier.cluster.arrays import Floats, Ints
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers, share_out


def floor_tokens(
    *,
    promise_tok_s: Floats,
    since_first_s: Floats,
    delivered_tokens: Ints,
    step_s: float,
    horizon_steps: float = 8.0,
    most_debt_s: float = 0.5,
) -> Floats:
    """Return the tokens [requests] that each request must get in a step: promise * step + debt / horizon.

    Args:
        promise_tok_s: [requests] 0: none.
        since_first_s: [requests] seconds since the first token.
        delivered_tokens: [requests] the first one included.
        step_s: expected time of the step.
        horizon_steps: steps within which a debt is to be paid back.
        most_debt_s: debt, or lead, counts up to this time at the promised speed.
    """
    debt = promise_tok_s * since_first_s - (delivered_tokens - 1)
    most = most_debt_s * promise_tok_s
    return np.maximum(promise_tok_s * step_s + np.clip(debt, -most, most) / horizon_steps, 0.0)


def floored_rows(
    offers: Offers,
    need_tokens: Floats,
    times: StepTimeModel,
    *,
    rung: int,
    context_tokens: int = 0,
    row_budget: int | None = None,
) -> Ints:
    """Return rows [requests]: first the least that are expected to yield `need_tokens` [requests], as far as caps go;
    then, of all totals above, the one whose tokens by weight are most for its time. A budget bounds what is added.
    """
    requests = len(need_tokens)
    floors = _least_rows(offers, need_tokens)
    rest = _rest(offers, floors)
    # The value of the k most valuable rows beyond the floors, for every k.
    values = np.sort((rest.survival * offers.weight[:, None]).ravel())[::-1]
    gained = np.concatenate(([0.0], np.cumsum(values[: np.count_nonzero(values)])))
    least = int(floors.sum())
    most_rows = least + len(gained) - 1 if row_budget is None else min(least + len(gained) - 1, row_budget)
    totals = times.totals(requests=least, most_rows=most_rows)
    value = offers.weight @ _tokens(offers, floors) + gained[totals - least]
    step_ms = times.step_ms(rung=rung, requests=requests, rows=totals, context_tokens=context_tokens)
    spare = int(totals[np.argmax(value / step_ms)]) - least
    return floors + share_out(rest, requests + spare) - 1


def adaserve_tokens(*, promise_tok_s: Floats, since_first_s: Floats, delivered_tokens: Ints, step_s: float) -> Floats:
    """Return the tokens [requests] that bring a request back to its promise by the end of this step (AdaServe's A)."""
    return np.maximum(promise_tok_s * (since_first_s + step_s) - (delivered_tokens - 1), 0.0)


def adaserve_rows(offers: Offers, need_tokens: Floats, *, total: int, most_need_rows: int) -> Ints:
    """Return rows [requests] of AdaServe (EuroSys): of a total, first those of the largest needs, then the likeliest.

    Args:
        offers: what can be verified; weights don't count.
        need_tokens: [requests] by `adaserve_tokens`.
        total: rows of the pass; each request has its anchor's all the same.
        most_need_rows: drafted rows that a need may take, so that a hopeless request doesn't take all (its n_max).
    """
    requests = len(need_tokens)
    wanted = np.minimum(_least_rows(offers, need_tokens) - 1, most_need_rows)
    # 1. Needs, the largest first, as far as the total goes.
    order = np.argsort(-need_tokens, kind="stable")
    before = np.cumsum(wanted[order]) - wanted[order]
    spare = max(0, total - requests)
    given = np.zeros(requests, dtype=np.int64)
    given[order] = np.clip(spare - before, 0, wanted[order])
    # 2. What is left goes to the likeliest nodes of all.
    rows = 1 + given
    left = spare - int(given.sum())
    rest = _rest(replace(offers, weight=np.ones(requests)), rows)
    return rows + share_out(rest, requests + left) - 1


def _least_rows(offers: Offers, need_tokens: Floats) -> Ints:
    """[requests] the fewest rows that are expected to yield the tokens needed, or all that the request may have."""
    sums = 1.0 + np.cumsum(offers.survival, axis=1)
    missing = np.concatenate((np.ones((len(sums), 1)), sums[:, :-1]), axis=1) < need_tokens[:, None]
    drafted = np.count_nonzero(missing & (offers.survival > 0.0), axis=1)
    rows: Ints = np.minimum(1 + drafted, offers.most_rows)
    return rows


def _rest(offers: Offers, rows: Ints) -> Offers:
    """What is left to verify when each request has its first `rows`."""
    requests, nodes = offers.survival.shape
    place = np.arange(nodes) + (rows - 1)[:, None]
    padded = np.concatenate((offers.survival, np.zeros((requests, nodes))), axis=1)
    left = np.where(place < (offers.most_rows - 1)[:, None], np.take_along_axis(padded, place, axis=1), 0.0)
    return Offers(left, offers.most_rows - rows + 1, offers.weight)


def _tokens(offers: Offers, rows: Ints) -> Floats:
    """[requests] expected tokens of `rows`."""
    verified = np.arange(offers.survival.shape[1]) < (rows - 1)[:, None]
    tokens: Floats = 1.0 + np.where(verified, offers.survival, 0.0).sum(axis=1)
    return tokens
