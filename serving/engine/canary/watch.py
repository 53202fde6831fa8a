"""Rank 0's watch over its own tokens: which answers it has scored, what their margins say, and the latch.

Needs no controller: an alarm reaches all ranks in the next pass of their loops, as the end of a plan's time does.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT
from torch import Tensor

from sparktier.cluster.canary import CanaryRules, ScoreBudget, WrongTokenTest, acceptance_state
from sparktier.configs.contracts.signals import CanaryReport
from sparktier.serving.engine.canary.margins import Choice
from sparktier.serving.engine.canary.scoring import Score, Scorer, is_score
from sparktier.serving.engine.plan.in_force import PlanInForce, plan_in_force
from sparktier.serving.engine.rank_options import CanaryMode, ladder_options, rank_options
from sparktier.serving.engine.sampling.seeds import seed_of
from sparktier.serving.engine.slots.penalty_table import is_penalised

logger = logging.getLogger(__name__)
# A score that has not ended by then was aborted.
_LONGEST_SCORE_S = 120.0
# Part of the answers that may be scored which is passed over, so that no pattern of traffic decides which are.
_PASSED_FRAC = 0.5


class Canary:
    """The canary of one rank. `sampled` is whether sampled tokens can be scored: their noise must be keyed."""

    def __init__(
        self,
        scorer: Scorer,
        plan: PlanInForce,
        *,
        mode: CanaryMode,
        sampled: bool,
        chunk_tokens: int,
        longest_tokens: int,
        rules: CanaryRules,
        clock: Callable[[], float] = time.perf_counter,
        rng: random.Random | None = None,
    ) -> None:
        self.rules = rules
        self._scorer, self._plan, self._mode, self._sampled = scorer, plan, mode, sampled
        self._chunk_tokens, self._longest_tokens = chunk_tokens, longest_tokens
        self._clock, self._rng = clock, rng or random.Random()
        self.test, self.budget = WrongTokenTest(self.rules), ScoreBudget(self.rules)
        self._waiting: Score | None = None
        self._since_s: float | None = None
        self._number = 0
        self.far_tokens = self.alarms = 0
        self._alarmed, self._resumes = False, plan.resumes

    def told(self) -> Iterator[Score]:
        """Yield what all ranks are to score now, once."""
        if self._waiting is not None:
            score, self._waiting = self._waiting, None
            yield score

    def stepped(self, batch: Any, *, drafted: bool) -> None:
        """Note the end of a step on SGLang's `batch`, whose results the scheduler has processed."""
        now_s = self._clock()
        self.budget.stepped(now_s, drafted=drafted, scored=any(is_score(request.rid) for request in batch.reqs))
        if self._plan.resumes != self._resumes:
            # What was found before counts no more.
            self._resumes, self._alarmed = self._plan.resumes, False
            self.test.reset()
        for request in batch.reqs:
            if not request.finished():
                continue
            if is_score(request.rid):
                self._scored(self._scorer.ended(request.rid))
            elif not request.__dict__.get("sparktier_offered", False):
                request.sparktier_offered = True
                self._offered(request, now_s)

    def report(self, drafts: float, accepted: float) -> CanaryReport:
        """Return what was found; so many of the first `drafts` of steps were accepted lately."""
        return CanaryReport(
            state="alarmed" if self._alarmed else "watching",
            scored_tokens=self.budget.scored_tokens,
            alarms=self.alarms,
            far_tokens=self.far_tokens,
            level_frac=min(1.0, self.test.level / self.rules.alarm_level),
            score_steps=self.budget.score_steps,
            steps=self.budget.steps,
            acceptance=acceptance_state(drafts, accepted, self.rules),
        )

    def _offered(self, request: Any, now_s: float) -> None:
        answered = len(request.output_ids)
        # Without an accepted draft, all tokens are those of plain decoding.
        if answered - 1 <= getattr(request, "spec_verify_ct", 0):
            return
        self.budget.emitted_tokens += answered
        busy = self._since_s is not None and now_s - self._since_s < _LONGEST_SCORE_S
        if busy or not self._can_score(request):
            return
        tokens = (*request.origin_input_ids, *request.output_ids)
        if not self.budget.takes(answered - 1, steps=math.ceil(len(tokens) / self._chunk_tokens)):
            return
        if self._rng.random() < _PASSED_FRAC:
            return
        params = request.sampling_params
        seed = seed_of(request.rid, params.sampling_seed)
        choice = Choice(params.temperature, params.top_k, params.top_p, params.min_p, seed)
        self._number += 1
        self._since_s = now_s
        self._waiting = Score(self._number, tokens, len(request.origin_input_ids), choice)

    def _can_score(self, request: Any) -> bool:
        """Whether the target's choice in each row depends on the row's logits, and on nothing else."""
        params = request.sampling_params
        constrained = (params.json_schema, params.regex, params.ebnf, params.structural_tag, params.logit_bias)
        return (
            (self._sampled or params.top_k == 1)
            and len(request.origin_input_ids) + len(request.output_ids) < self._longest_tokens
            and not any(constrained)
            and not is_penalised(params)
            and request.custom_logit_processor is None
            and not isinstance(request.finished_reason, FINISH_ABORT)
        )

    def _scored(self, margins: Tensor | None) -> None:
        self._since_s = None
        if margins is None:
            return
        found = margins.numpy()
        self.budget.scored_tokens += len(found)
        self.far_tokens += int((found >= self.rules.far_nats).sum())
        if self._alarmed or not self.test.add(found):
            return
        self._alarmed = True
        self.alarms += 1
        cause = (
            f"the canary found {self.far_tokens} of {self.budget.scored_tokens} scored tokens at least"
            f" {self.rules.far_nats:g} nats behind the target's choice"
        )
        logger.error("%s", cause)
        if self._mode == "latch":
            self._plan.ask_latch(cause)


def watch(scheduler: Any, *, rules: CanaryRules | None = None) -> Canary | None:
    """Install a canary on the rank of SGLang's `scheduler` and return it; None where its worker can't score."""
    scorer: Scorer | None = getattr(scheduler.draft_worker, "scorer", None)
    mode = rank_options().canary
    if scorer is None or mode == "off":
        return None
    from sglang.utils import TypeBasedDispatcher

    scheduler._request_dispatcher += TypeBasedDispatcher([(Score, lambda score: scorer.begin(score, scheduler))])
    canary = Canary(
        scorer,
        plan_in_force(scheduler),
        mode=mode,
        sampled=ladder_options().accept_rule == "match",
        chunk_tokens=scheduler.chunked_prefill_size or scheduler.max_prefill_tokens,
        longest_tokens=scheduler.max_req_input_len - 1,
        rules=rules or CanaryRules(noise_frac=rank_options().canary_noise_frac),
    )
    process, poll = scheduler.process_batch_result, scheduler._poll_timeout_aborts

    def process_batch_result(batch: Any, result: Any) -> None:
        process(batch, result)
        record = getattr(result, "record", None)
        canary.stepped(batch, drafted=record is not None and record.rung > 0)

    def poll_with_canary() -> list[Any]:
        return [*poll(), *canary.told()]

    if scorer.measures:
        scheduler.process_batch_result = process_batch_result
        scheduler._poll_timeout_aborts = poll_with_canary
        scheduler.sparktier_canary = canary
    return canary
