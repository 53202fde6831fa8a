"""The losslessness canary's decisions: what is scored, when tokens are wrong too often, and absurd acceptance. Pure."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
AcceptanceState = Literal["usual", "high", "low"]

_MINUTE_S = 60.0
# A longer pause between two steps is no traffic.
_LONGEST_STEP_S = 2.0


@dataclass(frozen=True)
class CanaryRules:
    """What the canary goes by; docs/canary.md says how each was chosen.

    A token is far whose margin is at least `far_nats`. The test weighs `wrong_frac` wrong tokens, in addition to
    `noise_frac` far ones, against that noise alone, and alarms at `alarm_level` (nats of evidence). Scored are at least
    `tokens_frac` of emitted tokens and `tokens_a_minute` while there is traffic, in at most `steps_frac` of all steps.
    Acceptance is absurd outside of `acceptance`, over at least `acceptance_drafts`.
    """

    far_nats: float = 0.4
    noise_frac: float = 1e-3
    wrong_frac: float = 5e-3
    alarm_level: float = 9.0
    tokens_frac: float = 0.002
    tokens_a_minute: float = 400.0
    steps_frac: float = 0.01
    acceptance: tuple[float, float] = (0.01, 0.998)
    acceptance_drafts: int = 2000


class WrongTokenTest:
    """A one-sided CUSUM test (Page, 1954) of how often scored tokens are far from the target's choice.

    `level` is the evidence of now; it falls with each token that is right, and never below 0.
    """

    def __init__(self, rules: CanaryRules) -> None:
        noise, wrong = rules.noise_frac, rules.wrong_frac
        self._rules = rules
        self._if_far = math.log((noise + wrong) / noise)
        self._if_near = math.log((1.0 - noise - wrong) / (1.0 - noise))
        self.level = 0.0

    def add(self, margins: Floats) -> bool:
        """Take the margins [n] of scored tokens in, and return whether the evidence reached the alarm level."""
        levels = self.levels(margins)
        if len(levels):
            self.level = float(levels[-1])
        return bool((levels >= self._rules.alarm_level).any())

    def levels(self, margins: Floats) -> Floats:
        """Return the evidence after each token, [n], from the level of now on."""
        steps = np.where(margins >= self._rules.far_nats, self._if_far, self._if_near)
        walk = self.level + np.cumsum(steps)
        levels: Floats = walk - np.minimum(0.0, np.minimum.accumulate(walk))
        return levels

    def reset(self) -> None:
        """Forget all evidence."""
        self.level = 0.0


class ScoreBudget:
    """Which answers are scored: counts tokens, steps and busy time; all of it since the start."""

    def __init__(self, rules: CanaryRules) -> None:
        self._rules = rules
        self.emitted_tokens = self.scored_tokens = 0
        self.steps = self.score_steps = 0
        self.busy_s = 0.0
        self._last_s: float | None = None

    def stepped(self, now_s: float, *, drafted: bool, scored: bool) -> None:
        """Count a step that ended at `now_s`: whether it drafted, and whether it scored tokens."""
        self.steps += 1
        self.score_steps += scored
        took_s = 0.0 if self._last_s is None else now_s - self._last_s
        self._last_s = now_s
        if drafted and took_s <= _LONGEST_STEP_S:
            self.busy_s += took_s

    def takes(self, tokens: int, *, steps: int) -> bool:
        """Whether an answer of so many `tokens` is to be scored now, in so many `steps`."""
        rules = self._rules
        owed = max(rules.tokens_frac * self.emitted_tokens, rules.tokens_a_minute * self.busy_s / _MINUTE_S)
        return tokens > 0 and self.scored_tokens < owed and self.score_steps + steps <= rules.steps_frac * self.steps


def acceptance_state(drafts: float, accepted: float, rules: CanaryRules) -> AcceptanceState:
    """Return whether `accepted` of so many first `drafts` are absurdly many or few; "usual" where few were seen."""
    low, high = rules.acceptance
    if drafts < rules.acceptance_drafts or low <= accepted / drafts <= high:
        return "usual"
    return "low" if accepted / drafts < low else "high"
