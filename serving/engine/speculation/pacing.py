"""Pacing: turns the requests of a step into the verify planner's inputs, and its answer into rows for each request.

The total of a step is decided on the host before anything is drafted, from survivals of earlier steps. Which request
gets which of these rows is decided by the survivals of this step's drafts (`live`), or by earlier ones too.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparktier.cluster.arrays import Floats, Ints
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.survival_memory import CURVE_GAIN, TierCurves
from sparktier.cluster.verify_planner import (
    Offers,
    PaceRules,
    best_total,
    share_out,
    usable_survival,
    weights,
)
from sparktier.configs.plan_keys import EnginePlan
from sparktier.kernels.select import highest
from sparktier.serving.engine.plan.request_tier import Admitted, admitted
from sparktier.serving.engine.rank_options import RankOptions

# A request that sat out a few steps drafts from another text by now.
_MOST_AGE_STEPS = 4
# Survivals of drawn drafts are at most so many times too high or too low.
_MOST_FACTOR = 4.0


class _Drafted(NamedTuple):
    """What a request's last draft promised: survivals [nodes], falling, on `rung`, in step number `step`."""

    survival: Floats
    rung: int
    step: int


@dataclass(frozen=True)
class PacedStep:
    """One step's plan, before it drafts.

    offers: by survivals of earlier steps. total: rows of the pass, anchors included. rows: [requests], shared out of it
    by the same offers.
    """

    offers: Offers
    total: int
    rows: Ints


class _Outcome(NamedTuple):
    """Moving averages of a tier's drafted tokens a step: expected to be accepted, and accepted."""

    expected: float
    accepted: float

    @property
    def factor(self) -> float:
        """What expectations are to be multiplied by."""
        if self.expected <= 0:
            return 1.0
        return min(max(self.accepted / self.expected, 1.0 / _MOST_FACTOR), _MOST_FACTOR)


class Pacer:
    """Plans the rows of one rank's steps. `clock` counts seconds as the observer's does, which notes first tokens."""

    def __init__(
        self,
        times: StepTimeModel,
        *,
        live: bool,
        rules: PaceRules | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.live = live
        self._times, self._clock = times, clock
        self._drifting = times
        self._rules = rules or PaceRules()
        self._step = 0
        self._drafted: dict[str, _Drafted] = {}
        self._curves = TierCurves()
        self._outcomes: dict[tuple[int, int], _Outcome] = {}

    def planned(self, requests: Sequence[Any], plan: EnginePlan, *, most_rows: Tensor, nodes: int) -> PacedStep:
        """Return what `begin` would plan now, and keep nothing of it."""
        terms = [admitted(request, plan) for request in requests]
        offers = Offers(
            self._survivals(requests, terms, plan, nodes), _on_host(most_rows), self._weights(requests, terms)
        )
        total = best_total(
            offers,
            self._times,
            rung=int(plan.rung),
            context_tokens=_context_tokens(requests),
            row_budget=plan.rows or None,
        )
        return PacedStep(offers, total, share_out(offers, total))

    def begin(
        self, requests: Sequence[Any], plan: EnginePlan, *, most_rows: Tensor, nodes: int, total: int | None = None
    ) -> "Pace":
        """Plan a step before it drafts.

        Args:
            requests: SGLang's, that decode in this step.
            plan: in force.
            most_rows: [requests] int64, rows that caps and ends allow, anchors included.
            nodes: most drafted nodes of a request.
            total: rows of the pass where they have been decided already.
        """
        self._step += 1
        terms = [admitted(request, plan) for request in requests]
        step = self.planned(requests, plan, most_rows=most_rows, nodes=nodes)
        if total is not None:
            step = PacedStep(step.offers, total, share_out(step.offers, total))
        return Pace(self, [each.rid for each in requests], terms, int(plan.rung), _context_tokens(requests), step)

    def share(self, pace: "Pace", survival: Floats, *, drawn: bool) -> Ints:
        """Return the rows [requests] now that the drafts are known, and keep `survival` [requests, nodes] for later.

        Drawn drafts may not decide how many of them are verified: theirs are the rows planned before.
        """
        if drawn:
            self._curves.follow([term.tier for term in pace.terms], pace.rung, survival)
            return pace.step.rows
        self._keep(pace.request_ids, pace.terms, pace.rung, survival)
        if not self.live:
            return pace.step.rows
        return share_out(replace(pace.step.offers, survival=survival), pace.step.total)

    def drafted(self, requests: Sequence[Any], plan: EnginePlan, survival: Floats) -> None:
        """Keep what earlier drafts of `requests` promised [requests, nodes], where that reaches the host by itself."""
        if requests:
            ids = [each.rid for each in requests]
            self._keep(ids, [admitted(each, plan) for each in requests], int(plan.rung), survival)

    def accepted(self, rung: int, tiers: Sequence[int], expected: Sequence[float], accepted: Sequence[int]) -> None:
        """Correct the tiers' curves by what came of drawn drafts, whose survivals are not calibrated.

        tiers, expected, accepted: of each request of one step; drafted tokens, without the one that is certain.
        """
        for tier in set(tiers):
            own = [place for place, other in enumerate(tiers) if other == tier]
            before = self._outcomes.get((tier, rung), _Outcome(0.0, 0.0))
            self._outcomes[tier, rung] = _Outcome(
                before.expected + CURVE_GAIN * (sum(expected[place] for place in own) - before.expected),
                before.accepted + CURVE_GAIN * (sum(accepted[place] for place in own) - before.accepted),
            )

    def took(self, took_ms: float, requests: Sequence[Any], *, rung: int, rows: int) -> None:
        """Let the machine's drift follow a step that took `took_ms`, with so many rows of `requests` in all.

        No decision of a step depends on the drift, which would multiply the time of every total alike.
        """
        if rung in self._times.table.draft_ms:
            total, context_tokens = np.array([rows], dtype=np.int64), _context_tokens(requests)
            predicted_ms = self._drifting.step_ms(
                rung=rung, requests=len(requests), rows=total, context_tokens=context_tokens
            )
            self._drifting = self._drifting.seen(predicted_ms=float(predicted_ms[0]), took_ms=took_ms)

    @property
    def drift_frac(self) -> float:
        """How much slower than its table this rank's machine is of late; 1 before the first step."""
        return self._drifting.drift_frac

    def forget(self, request_id: str) -> None:
        """Drop what is kept of a request that has ended."""
        self._drafted.pop(request_id, None)

    def _survivals(self, requests: Sequence[Any], terms: Sequence[Admitted], plan: EnginePlan, nodes: int) -> Floats:
        seen = np.full((len(requests), nodes), np.nan)
        ages = np.full(len(requests), -1, dtype=np.int64)
        curves = self._curves.of([term.tier for term in terms], int(plan.rung), nodes=nodes)
        for place, (request, term) in enumerate(zip(requests, terms, strict=True)):
            last = self._drafted.get(request.rid)
            if last is not None and last.rung == plan.rung:
                seen[place], ages[place] = last.survival, self._step - last.step
            if outcome := self._outcomes.get((term.tier, int(plan.rung))):
                curves[place] = np.minimum(curves[place] * outcome.factor, 1.0)
        return usable_survival(seen=seen, age_steps=ages, most_age_steps=_MOST_AGE_STEPS, curve=curves)

    def _weights(self, requests: Sequence[Any], terms: Sequence[Admitted]) -> Floats:
        now_s = self._clock()
        first_s = [getattr(request, "sparktier_first_token_s", np.nan) for request in requests]
        return weights(
            tier_weight=np.array([term.weight for term in terms]),
            promise_tok_s=np.array([term.promise_tok_s for term in terms]),
            since_first_s=now_s - np.array(first_s),
            delivered_tokens=np.array([len(request.output_ids) for request in requests], dtype=np.int64),
            rules=self._rules,
        )

    def _keep(self, request_ids: Sequence[str], terms: Sequence[Admitted], rung: int, survival: Floats) -> None:
        self._curves.follow([term.tier for term in terms], rung, survival)
        for row, request_id in zip(survival, request_ids, strict=True):
            self._drafted[request_id] = _Drafted(row, rung, self._step)


def pacer_of(options: RankOptions) -> Pacer | None:
    """Return the pacer of a rank; None where the rank was told of no planner."""
    planner = options.planner
    return None if planner is None else Pacer(StepTimeModel(planner.table), live=planner.live)


@dataclass(frozen=True)
class Pace:
    """A step that has been planned and is drafting: asked for its rows once the drafts are known.

    is_decided: whether its rows are those planned before, whatever the drafts promise, which a GPU then isn't asked.
    """

    pacer: Pacer
    request_ids: Sequence[str]
    terms: Sequence[Admitted]
    rung: int
    context_tokens: int
    step: PacedStep
    is_decided: bool = False

    @property
    def nodes(self) -> int:
        """Most drafted nodes of a request."""
        return int(self.step.offers.survival.shape[1])

    def keep(self, falling: Tensor, *, drawn: bool) -> Sequence[float]:
        """Keep what the drafts of a decided step promised, and return what is expected of each request's rows."""
        known = self._known(falling)
        self.pacer.share(self, known, drawn=drawn)
        return self._expected(known, self.step.rows)

    def row_counts(self, survival: Tensor, *, drawn: bool) -> "PacedRows":
        """Return the rows of each request, and what is expected of them.

        Args:
            survival: [batch, candidates] of this step's candidates, the anchor's included; 0 where there is none.
            drawn: whether the candidates were drawn.
        """
        known = self._known(highest(survival=survival, nodes=self.nodes))
        rows = self.pacer.share(self, known, drawn=drawn)
        return PacedRows(torch.from_numpy(rows), self._expected(known, rows))

    def _known(self, falling: Tensor) -> Floats:
        known = np.zeros_like(self.step.offers.survival)
        known[:, : falling.shape[1]] = falling.double().cpu().numpy()
        return known

    def _expected(self, known: Floats, rows: Ints) -> Sequence[float]:
        verified = np.arange(known.shape[1]) < (rows - 1)[:, None]
        expected: list[float] = np.where(verified, known, 0.0).sum(axis=1).tolist()
        return expected


class PacedRows(NamedTuple):
    """What a step verifies: row_counts [batch] int64, on the host, anchors included.

    expected: drafted tokens of each request to be accepted.
    """

    row_counts: Tensor
    expected: Sequence[float]


def _context_tokens(requests: Sequence[Any]) -> int:
    return sum(len(each.origin_input_ids) + len(each.output_ids) for each in requests)


def _on_host(counts: Tensor) -> Ints:
    host: Ints = counts.cpu().numpy()
    return host
