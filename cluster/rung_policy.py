"""Measured rungs: which rung of a replica's ladder serves fastest at a load, by what its steps took of late.

Pure: told what was measured, asked what to run. Rungs are numbers, 0 being off.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

# What was measured this many steps ago counts 1/e of the newest.
_MEMORY_STEPS = 256.0
# A rung has to be this much faster than the present one: two that are as good would take turns for ever.
_MARGIN_FRAC = 0.02
# Beyond so many times the highest load measured a line through measurements says nothing of what is to come.
_FAR_LOADS = 2.0


class _Average:
    """An average in which steps long past count less."""

    def __init__(self) -> None:
        self.value, self.weight = 0.0, 0.0

    def add(self, value: float, steps: float) -> None:
        kept = self.weight * math.exp(-steps / _MEMORY_STEPS)
        self.weight = kept + steps
        self.value += (value - self.value) * steps / self.weight


class Ladder:
    """Measured rungs: the time of a step by rung and users in it, and tokens a round yields by rung.

    What a round yields hardly depends on how many share the step, so all loads teach it; time does. It never falls with
    the load, rises evenly between two loads measured and goes on so beyond them; far beyond them, or where only one was
    measured, each user more is taken to cost a full share.
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
            rung: 1000.0 * self._round_tokens[rung].value / _step_ms(times, users)
            for rung, times in self._step_ms.items()
        }

    def choose(self, *, users: float, now: int | None = None) -> int:
        """Return the rung to run for `users` users; `now`, the one in force, stays unless another is clearly faster.

        A rung without measurements is never chosen; if no rung has any, the choice is 0.
        """
        rates = self.rates(users)
        best = max(rates, key=lambda rung: (rates[rung], -rung), default=0)
        if now is not None and now in rates and rates[best] <= rates[now] * (1.0 + _MARGIN_FRAC):
            return now
        return best


def _step_ms(times: Mapping[int, _Average], users: float) -> float:
    """The time of a step with `users`, from those measured by load."""
    loads, measured = sorted(times), _rising([times[load] for load in sorted(times)])
    first, last = loads[0], loads[-1]
    if users <= first:
        slope = (measured[1] - measured[0]) / (loads[1] - first) if len(loads) > 1 else 0.0
        return max(measured[0] - slope * (first - users), measured[0] * users / first)
    if users >= last:
        if len(loads) == 1:
            return measured[-1] * users / last
        slope = (measured[-1] - measured[-2]) / (last - loads[-2])
        return max(measured[-1] + slope * (users - last), measured[-1] * users / (_FAR_LOADS * last))
    place = bisect_left(loads, users)
    below, above = loads[place - 1], loads[place]
    share = (users - below) / (above - below)
    return measured[place - 1] * (1.0 - share) + measured[place] * share


def _rising(measured: Sequence[_Average]) -> list[float]:
    """The values nearest to `measured`, by weight, that never fall: neighbours that do are given their average."""
    groups: list[tuple[float, float, int]] = []
    for average in measured:
        value, weight, size = average.value, average.weight, 1
        while groups and groups[-1][0] > value:
            before, its_weight, its_size = groups.pop()
            value = (before * its_weight + value * weight) / (its_weight + weight)
            weight, size = its_weight + weight, its_size + size
        groups.append((value, weight, size))
    return [value for value, _, size in groups for _ in range(size)]
