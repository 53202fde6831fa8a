"""The verify planner: how many rows one step verifies, and how many of them each request gets.

Pure. It is Algorithm 1 of the DSpark paper with weights: each step maximises sum(weight * expected tokens) / time. The
weights rise with what a request is behind its promise, by drift-plus-penalty for frames of chosen length (Neely, arXiv
1011.5942). With equal weights it equals `compute_verify_token_budget` and `ScheduleVerifyLensTopk` of SGLang 0.5.23,
in ties too. The formulas and what follows from them are in docs/policies/verify-planner.md.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparktier.cluster.arrays import Flags, Floats, Ints
from sparktier.cluster.step_time import StepTimeModel

# Less likely nodes are never verified: `survival_eps` of SGLang, in the float32 in which it compares.
LEAST_SURVIVAL = float(np.float32(1e-6))


@dataclass(frozen=True)
class PaceRules:
    """How fast a request's weight rises as it falls behind its promise."""

    lead_tokens: float = 8.0
    """The lead to keep, in tokens: as uncertain as what some twenty rounds yield. > 0."""
    lead_s: float = 0.5
    """The lead to keep, in seconds at the promised speed; the longer of the two counts."""
    gain: float = 2.0
    """beta: what a request without any lead weighs more than one with its whole lead, in weights of its tier."""
    most: float = 1.0
    """kappa: what is missing counts up to so many leads. A weight is at most `1 + gain * most` times its tier's."""


@dataclass(frozen=True)
class Offers:
    """What the requests of one step could verify, in the order of their slots."""

    survival: Floats
    """[requests, nodes] chance that a drafted node is accepted with all above it. It falls along nodes; 0: no node."""
    most_rows: Ints
    """[requests] rows allowed, the anchor's included, >= 1."""
    weight: Floats
    """[requests] > 0."""


class Expected(NamedTuple):
    """What a step is expected to do."""

    tokens: Floats
    """[requests] tokens, the one that every step yields included."""
    step_ms: float
    rates_tok_s: Floats
    """[requests] tokens over the step's time."""


def planned_rows(
    lagged: Offers,
    live: Offers,
    times: StepTimeModel,
    *,
    rung: int,
    context_tokens: int = 0,
    row_budget: int | None = None,
) -> Ints:
    """Return the rows [requests] of each request, >= 1.

    Args:
        lagged: offers by survivals of the step before. They alone decide the total, so it can't tell what was drafted.
        live: offers of this step's drafts, same requests; `lagged` again where nothing may wait for the drafts.
        times: what a step costs.
        rung: what is drafted.
        context_tokens: tokens of KV that all requests together read.
        row_budget: most rows of the pass; each request has its anchor's all the same. None: no such bound.
    """
    # 1. How many rows in all: the total whose expected tokens by weight are most for its time.
    total = best_total(lagged, times, rung=rung, context_tokens=context_tokens, row_budget=row_budget)
    # 2. Whose rows: the most valuable ones, wherever they are.
    return share_out(live, total)


def best_total(
    offers: Offers,
    times: StepTimeModel,
    *,
    rung: int,
    context_tokens: int = 0,
    row_budget: int | None = None,
) -> int:
    """Return the rows of the pass, anchors included, that maximise sum(weight * expected tokens) / time.

    Of totals that are as good it is the least. Arguments are those of `planned_rows`.
    """
    values = np.sort(_values(offers).ravel())[::-1]
    return best_total_of(values, offers.weight, times, rung=rung, context_tokens=context_tokens, row_budget=row_budget)


def best_total_of(
    values: Floats,
    weight: Floats,
    times: StepTimeModel,
    *,
    rung: int,
    context_tokens: int = 0,
    row_budget: int | None = None,
) -> int:
    """Return what `best_total` returns, of the `values` [nodes of all requests] of rows, falling, 0 where none may be
    verified, and the `weight` [requests] of anchors.
    """
    requests = len(weight)
    if requests == 0:
        return 0
    # 1. The value of the k most valuable drafted rows, for every k.
    drafted = int(np.count_nonzero(values))
    gained = np.zeros(drafted + 1)  # [k]
    np.cumsum(values[:drafted], out=gained[1:])
    # 2. Totals worth comparing, within the budget: every request has its anchor's row.
    most_rows = requests + drafted if row_budget is None else min(requests + drafted, row_budget)
    totals = times.totals(requests=requests, most_rows=most_rows)  # [n], rising
    # 3. Value over time. An anchor yields one token for certain.
    value = weight.sum() + gained[totals - requests]
    step_ms = times.step_ms(rung=rung, requests=requests, rows=totals, context_tokens=context_tokens)
    return int(totals[np.argmax(value / step_ms)])


def share_out(offers: Offers, total: int) -> Ints:
    """Return the rows [requests] of each request, >= 1: of `total`, the most valuable ones by weight * survival.

    Between equals the shallower node comes first, then the lower slot. Rows that have no node to verify are left over,
    so the sum may be less than `total`; it is more only where `total` has no row for each anchor.
    """
    requests = len(offers.weight)
    values = _values(offers)  # [nodes, requests]
    flat = values.ravel()
    spare = min(total - requests, int(np.count_nonzero(flat)))
    if spare <= 0:
        return np.ones(requests, dtype=np.int64)
    # 1. The value of the last row that fits; a partition finds it without a sort.
    last = np.partition(flat, flat.size - spare)[flat.size - spare]
    # 2. All that is worth more, and of its equals the first: shallower nodes lie first, within them lower slots.
    chosen = flat > last
    equals = np.flatnonzero(flat == last)
    chosen[equals[: spare - np.count_nonzero(chosen)]] = True
    # 3. Values fall along nodes, so what is chosen of a request are its first nodes.
    rows: Ints = 1 + chosen.reshape(values.shape).sum(axis=0, dtype=np.int64)
    return rows


def expected(offers: Offers, rows: Ints, times: StepTimeModel, *, rung: int, context_tokens: int = 0) -> Expected:
    """Return what a step that verifies `rows` [requests] of each request is expected to yield and to take."""
    requests, nodes = offers.survival.shape
    verified = np.arange(nodes) < (rows - 1)[:, None]  # [requests, nodes]
    tokens = 1.0 + np.where(verified, offers.survival, 0.0).sum(axis=1)
    total = np.array([rows.sum()], dtype=np.int64)
    step_ms = float(times.step_ms(rung=rung, requests=requests, rows=total, context_tokens=context_tokens)[0])
    return Expected(tokens, step_ms, 1000.0 * tokens / step_ms)


def weights(
    *, tier_weight: Floats, promise_tok_s: Floats, since_first_s: Floats, delivered_tokens: Ints, rules: PaceRules
) -> Floats:
    """Return the weights [requests]: the tier's, and for a promised request more, the further it is behind its lead.

    Args:
        tier_weight: [requests] > 0.
        promise_tok_s: [requests] promised speed; 0: none.
        since_first_s: [requests] seconds since the first token came. NaN, before it did: the tier's weight.
        delivered_tokens: [requests] tokens delivered, the first one included.
        rules: how fast weights rise.
    """
    promised = promise_tok_s > 0
    # 1. Tokens ahead of the promise; the first token starts its clock, so it doesn't count.
    lead = np.maximum(delivered_tokens - 1, 0) - promise_tok_s * np.maximum(since_first_s, 0.0)
    # 2. The lead to keep: an answer's end may fall into a bad stretch.
    keep = np.maximum(rules.lead_tokens, rules.lead_s * promise_tok_s)
    # 3. What is missing of it, in leads.
    missing = np.minimum(np.maximum((keep - lead) / keep, 0.0), rules.most)
    paced = tier_weight * (1.0 + rules.gain * missing)
    return np.where(promised & np.isfinite(paced), paced, tier_weight)


def usable_survival(*, seen: Floats, age_steps: Ints, most_age_steps: int, curve: Floats) -> Floats:
    """Return survivals [requests, nodes] to plan by: those seen of a request, or else its tier's.

    Of a tier without a curve too, as in a deployment's first steps, all is verified that the rung and caps allow.

    Args:
        seen: [requests, nodes] by the latest draft of each request. A row with NaN or a value outside of 0..1 is void.
        age_steps: [requests] steps since that draft; negative: there was none, as with a new request.
        most_age_steps: older ones are stale.
        curve: [requests, nodes] what the request's tier was accepted at each node of late; NaN: unknown.
    """
    fresh = (age_steps >= 0) & (age_steps <= most_age_steps) & _chances(seen)
    if fresh.all():
        return np.minimum.accumulate(seen, axis=1)
    known = np.where(_chances(curve)[:, None], curve, 1.0)
    survival: Floats = np.minimum.accumulate(np.where(fresh[:, None], seen, known), axis=1)
    return survival


def _values(offers: Offers) -> Floats:
    """[nodes, requests] weight * survival of each node that may be verified, 0 of others. Shallower nodes lie first."""
    nodes = np.arange(offers.survival.shape[1])
    allowed = (offers.survival >= LEAST_SURVIVAL) & (nodes < (offers.most_rows - 1)[:, None])
    values: Floats = np.where(allowed.T, (offers.survival * offers.weight[:, None]).T, 0.0)
    return values


def _chances(rows: Floats) -> Flags:
    """[requests] whether every value of a row is one from 0 to 1."""
    chances: Flags = np.all((rows >= 0.0) & (rows <= 1.0), axis=1)
    return chances
