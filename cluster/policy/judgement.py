"""What the model says of one replica: which rung is worth most to its users, and how many users fit. Pure.

Questions are rounded and hashable, so replicas in the same situation share an answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from sparktier.cluster.feasibility import ReplicaFacts, TierText, box_of, most_evaluations
from sparktier.cluster.policy.acceptance import (
    HARD_TOKENS_FRAC,
    USUAL_ACCEPT_FRAC,
    as_chain,
    chain_text,
    no_drafts,
    tree_text,
)
from sparktier.cluster.policy.policy_types import OFF, TREE, PolicyConfig
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers, PaceRules, best_total, expected, share_out
from sparktier.configs.step_times import StepTimeTable

Pairs = tuple[tuple[int, int], ...]
Curves = tuple[tuple[int, tuple[float, ...]], ...]
Fracs = tuple[tuple[int, float], ...]
_RULES = PaceRules()


class Texts(NamedTuple):
    """Acceptance by tier on chains and trees, and tokens a step over the median's: of the user by whom caps are judged,
    and of the one at the 5th percentile.
    """

    chain: Curves
    tree: Curves
    hard_fracs: Fracs
    slow_fracs: Fracs


class RungQuestion(NamedTuple):
    """Which rung is worth most while these users run?"""

    running: Pairs
    context_tokens: int
    texts: Texts


class RungAnswer(NamedTuple):
    """By rung, tokens a second by tier weight, on a machine as fast as its table."""

    values: Mapping[int, float]


class BoxQuestion(NamedTuple):
    """How many users fit on this rung?"""

    rung: int
    wanted: Pairs
    texts: Texts
    drift_frac: float
    context_tokens: int
    prefill_frac: float
    most_users: int
    kv_tokens: int | None


class BoxAnswer(NamedTuple):
    """Caps by tier, and the most rows of a step; 0 is no bound."""

    caps: Mapping[int, int]
    rows: int


@dataclass
class Judge:
    """Answers by the model, each question once. `left` are the questions that may still be put to the planner."""

    config: PolicyConfig
    left: int
    asked: int = 0
    _answers: dict[tuple[int, NamedTuple], NamedTuple] = field(default_factory=dict)

    def can_afford(self, most_users: int) -> bool:
        """Return whether a replica of `most_users` can still be judged in this tick."""
        return self.left >= len(self.config.drafted) + most_evaluations(most_users)

    def rung(self, question: RungQuestion, table: StepTimeTable) -> RungAnswer:
        """Return what each rung that is in `table` is worth."""
        key = (id(table), question)
        if key not in self._answers:
            rungs = [rung for rung in sorted(self.config.drafted) if rung in table.draft_ms]
            self._spend(len(rungs))
            self._answers[key] = RungAnswer({rung: self._worth(question, rung, StepTimeModel(table)) for rung in rungs})
        answer = self._answers[key]
        assert isinstance(answer, RungAnswer)
        return answer

    def box(self, question: BoxQuestion, table: StepTimeTable) -> BoxAnswer:
        """Return how many users of each tier fit."""
        key = (id(table), question)
        if key not in self._answers:
            self._answers[key] = self._box(question, table)
        answer = self._answers[key]
        assert isinstance(answer, BoxAnswer)
        return answer

    def _worth(self, question: RungQuestion, rung: int, times: StepTimeModel) -> float:
        texts = self._texts(question.texts, rung)
        running = dict(question.running)
        users = [tier for tier, count in running.items() for _ in range(count)]
        survival = np.array([texts[tier].survival for tier in users])
        weight = np.array([self.config.tiers[tier].weight for tier in users])
        caps = [self.config.tiers[tier].cap_tokens for tier in users]
        most_rows = np.array([1 + (survival.shape[1] if cap is None else cap) for cap in caps], dtype=np.int64)
        offers = Offers(survival, most_rows, weight)
        rows = share_out(offers, best_total(offers, times, rung=rung, context_tokens=question.context_tokens))
        step = expected(offers, rows, times, rung=rung, context_tokens=question.context_tokens)
        return float((weight * step.rates_tok_s).sum())

    def _box(self, question: BoxQuestion, table: StepTimeTable) -> BoxAnswer:
        times = StepTimeModel(table, question.drift_frac)
        chunk_tokens = self.config.chunk_tokens
        facts = ReplicaFacts(
            times=times,
            rung=question.rung,
            texts=self._texts(question.texts, question.rung),
            most_users=question.most_users,
            kv_tokens=question.kv_tokens,
            context_tokens=question.context_tokens,
            prompt_tokens=question.context_tokens,
            prefill_frac=question.prefill_frac,
            # By the table alone, as chunks were made to fit: a slow hour is no fault of theirs.
            stall_ms=0.0 if chunk_tokens is None else StepTimeModel(table).prefill_ms(chunk_tokens),
        )
        targets = {tier: rule.target(question.most_users) for tier, rule in self.config.tiers.items()}
        box = box_of(
            facts,
            targets,
            dict(question.wanted),
            rules=_RULES,
            margin_frac=self.config.margin_frac,
            most_kept=self.config.caution_frac == 0,
        )
        self._spend(box.region.evaluations)
        bounded = box.rows is not None and any(rule.promise_tok_s for rule in self.config.tiers.values())
        return BoxAnswer(box.caps, box.rows or 0 if bounded else 0)

    def _texts(self, texts: Texts, rung: int) -> dict[int, TierText]:
        """The texts on `rung`. A rung or tier of which nothing is known borrows from another."""
        positions, hard, slow = self.config.drafted[rung], dict(texts.hard_fracs), dict(texts.slow_fracs)
        is_tree = rung == TREE and bool(texts.tree)
        borrowed = tuple((tier, as_chain(accept)) for tier, accept in texts.tree)
        curves = dict(texts.tree if is_tree else texts.chain or borrowed)
        nodes = self.config.tree_nodes if is_tree else positions
        if rung == OFF or nodes == 0:
            return {tier: no_drafts() for tier in self.config.tiers}
        found = {}
        for tier in self.config.tiers:
            accept = curves.get(tier) or next(iter(curves.values()), (USUAL_ACCEPT_FRAC,))
            if is_tree:
                text = tree_text(accept, positions, nodes, hard.get(tier))
            else:
                text = chain_text(accept, positions, hard.get(tier))
            found[tier] = replace(text, spread_frac=1.0 - slow.get(tier, HARD_TOKENS_FRAC))
        return found

    def _spend(self, questions: int) -> None:
        self.left -= questions
        self.asked += questions
