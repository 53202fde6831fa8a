"""Rank 0's watch: which answers it has scored, what an alarm comes to, and what a resume forgets."""

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH, BaseFinishReason
from sglang.srt.sampling.sampling_params import SamplingParams
from torch import Tensor

from sparktier.cluster.canary import CanaryRules
from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.serving.engine.canary.scoring import Score, Scorer
from sparktier.serving.engine.canary.watch import Canary
from sparktier.serving.engine.plan.in_force import PlanInForce
from sparktier.serving.engine.rank_options import CanaryMode

ALL = CanaryRules(tokens_frac=1.0, steps_frac=1.0)
# Of the tokens of one answer after its first.
RIGHT, WRONG = torch.zeros(19, dtype=torch.float64), torch.full((19,), 2.0, dtype=torch.float64)


class Rng(random.Random):
    """Passes no answer over."""

    def random(self) -> float:
        return 0.999


class ToldScorer:
    """Says of each score the margins that the test set."""

    measures = True
    margins: Tensor | None = RIGHT

    def ended(self, request_id: str) -> Tensor | None:
        return self.margins


def watching(mode: CanaryMode = "latch", *, sampled: bool = True) -> tuple[Canary, PlanInForce, ToldScorer]:
    plan = PlanInForce(EnginePlan(rung=Rung.TREE), highest=Rung.TREE, safe=Rung.OFF, clock=lambda: 0.0)
    scorer = ToldScorer()
    canary = Canary(
        cast("Scorer", scorer),
        plan,
        mode=mode,
        sampled=sampled,
        chunk_tokens=64,
        longest_tokens=1000,
        rules=ALL,
        clock=lambda: 0.0,
        rng=Rng(),
    )
    return canary, plan, scorer


def answer(*, drafts: int = 4, reason: BaseFinishReason | None = None, **params: Any) -> Any:
    """A finished request of 20 tokens that took so many verify passes, `drafts` fewer than tokens."""
    sampling = SamplingParams(**{"temperature": 0.0, **params})
    sampling.normalize(None)
    return SimpleNamespace(
        rid="someone",
        origin_input_ids=[1, 2, 3],
        output_ids=list(range(20)),
        spec_verify_ct=19 - drafts,
        sampling_params=sampling,
        custom_logit_processor=None,
        finished_reason=reason or FINISH_LENGTH(20),
        finished=lambda: True,
    )


def scored(canary: Canary, **changes: Any) -> Score | None:
    """What the canary wants scored once such an answer has ended; it is scored."""
    canary.stepped(SimpleNamespace(reqs=[answer(**changes)]), drafted=True)
    score = next(canary.told(), None)
    if score is not None:
        ended = SimpleNamespace(rid=score.request_id, finished=lambda: True)
        canary.stepped(SimpleNamespace(reqs=[ended]), drafted=False)
    return score


def test_an_answer_that_speculated_is_scored_after_its_first_token_and_told_of_once() -> None:
    canary, _, _ = watching()
    score = scored(canary)
    assert score is not None
    assert (score.tokens, score.prompt_tokens, score.scored_tokens) == ((1, 2, 3, *range(20)), 3, 19)
    assert not list(canary.told())
    assert canary.report(0, 0).scored_tokens == len(RIGHT)


@pytest.mark.parametrize(
    "changes",
    [
        {"drafts": 0},
        {"reason": FINISH_ABORT("gone")},
        {"frequency_penalty": 0.5},
        {"presence_penalty": 0.5},
        {"regex": "a+"},
        {"logit_bias": {"5": 1.0}},
    ],
    ids=str,
)
def test_what_plain_prefill_cannot_judge_is_not_scored(changes: dict[str, Any]) -> None:
    assert scored(watching()[0], **changes) is None


def test_sampled_answers_are_scored_only_where_their_noise_is_keyed() -> None:
    assert scored(watching()[0], temperature=0.8) is not None
    assert scored(watching(sampled=False)[0], temperature=0.8) is None
    assert scored(watching(sampled=False)[0]) is not None


@pytest.mark.parametrize("mode", ["latch", "watch"])
def test_an_alarm_asks_for_the_latch_once_with_its_cause_and_only_in_that_mode(mode: CanaryMode) -> None:
    canary, plan, scorer = watching(mode)
    scored(canary)
    assert (canary.report(0, 0).state, plan.latch_asked()) == ("watching", None)
    scorer.margins = WRONG
    scored(canary)
    report, asked = canary.report(0, 0), plan.latch_asked()
    assert (report.state, report.alarms, report.level_frac) == ("alarmed", 1, 1.0)
    assert (asked is not None) == (mode == "latch")
    assert asked is None or "19 of 38 scored tokens" in asked.cause
    scored(canary)
    assert (canary.report(0, 0).alarms, plan.latch_asked()) == (1, None)


def test_a_resume_forgets_the_evidence_and_the_canary_alarms_anew() -> None:
    canary, plan, scorer = watching()
    scorer.margins = WRONG
    scored(canary)
    assert canary.report(0, 0).state == "alarmed"
    plan.resume()
    scorer.margins = RIGHT
    scored(canary)
    report = canary.report(0, 0)
    assert (report.state, report.level_frac, report.alarms) == ("watching", 0.0, 1)
    scorer.margins = WRONG
    scored(canary)
    assert canary.report(0, 0).alarms == 2


def test_a_score_without_margins_counts_nothing() -> None:
    canary, _, scorer = watching()
    scorer.margins = None
    assert scored(canary) is not None
    assert canary.report(0, 0).scored_tokens == 0
    assert scored(canary) is not None, "the next answer was not scored"
