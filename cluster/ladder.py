"""Which rung of a replica's ladder serves fastest at a load, by what its steps took and yielded there.

Pure: told what was measured, asked what to run. Knows nothing of tiers, of engines, or of how a rung is put in force;
rungs are numbers, 0 being off.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping

# What was measured this many steps ago counts 1/e of the newest.
_MEMORY_STEPS = 256.0
# A rung has to be this much faster than the present one: two that are as good would take turns for ever.
_MARGIN_FRAC = 0.02


class _Average:
    """An average in which steps long past count less."""

    def __init__(self) -> None:
        self.value, self._weight = 0.0, 0.0

    def add(self, value: float, steps: float) -> None:
        kept = self._weight * math.exp(-steps / _MEMORY_STEPS)
        self._weight = kept + steps
        self.value += (value - self.value) * steps / self._weight


class Ladder:
    """Measured rungs: the time of a step by rung and users in it, and tokens a round yields by rung.

    What a round yields hardly depends on how many share the step, so all loads teach it; time does, and between two
    loads measured is taken to rise evenly.
    """

    def __init__(self) -> None:
        self._step_ms: dict[int, dict[int, _Average]] = {}
        self._round_tokens: dict[int, _Average] = {}

    def observe(self, rung: int, *, users: float, steps: float, step_ms: float, round_tokens: float) -> None:
        """Learn that `steps` steps on `rung`, `users` requests in each, took `step_ms` and gave each `round_tokens`."""
        if steps <= 0:
            return
        at = max(1, round(users))
        self._step_ms.setdefault(rung, {}).setdefault(at, _Average()).add(step_ms, steps)
        self._round_tokens.setdefault(rung, _Average()).add(round_tokens, steps * at)

    def rates(self, users: float) -> Mapping[int, float]:
        """Return tokens per second of each of `users` users, for every rung that was ever measured."""
        return {
            rung: 1000.0 * self._round_tokens[rung].value / _between(times, users)
            for rung, times in self._step_ms.items()
        }

    def choose(self, *, users: float, now: int | None = None) -> int:
        """Return the rung to run for `users` users; `now`, the one in force, stays unless another is clearly faster.

        What nobody measured is never chosen; without any measurement at all that leaves 0.
        """
        rates = self.rates(users)
        best = max(rates, key=lambda rung: (rates[rung], -rung), default=0)
        if now is not None and now in rates and rates[best] <= rates[now] * (1.0 + _MARGIN_FRAC):
            return now
        return best


def _between(times: Mapping[int, _Average], users: float) -> float:
    """The time at `users`, on the line between the loads measured next to it; beyond all of them, the nearest one's."""
    loads = sorted(times)
    place = bisect_left(loads, users)
    if place in (0, len(loads)):
        return times[loads[min(place, len(loads) - 1)]].value
    below, above = loads[place - 1], loads[place]
    share = (users - below) / (above - below)
    return times[below].value * (1.0 - share) + times[above].value * share
