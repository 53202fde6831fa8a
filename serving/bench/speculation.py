"""Measures each rung and the ladder's choice, interleaved, by batch, temperature and prompts.

Only the engine's time in decode steps counts, so that prefill and clients do not blur the figures.
"""

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from sparktier.cluster.rung_policy import Ladder
from sparktier.configs.plan_keys import Rung
from sparktier.serving.bench import steering
from sparktier.serving.bench.counters import Totals
from sparktier.serving.bench.measurements import Case, Measurements, ReportRows, RungChoice, report_row


class Engine(steering.Engine, Protocol):
    """An engine that also answers prompts, such as `MeasuredReplica`."""

    def answer(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> int:
        """Answer a prompt."""


@dataclass(frozen=True)
class Load:
    """The load of each case: `turns` prompts for each user of the batch, answers of up to `max_tokens`."""

    turns: int
    max_tokens: int
    repeats: int
    seed: int


def measure(
    engine: Engine,
    cases: Sequence[Case],
    rungs: Sequence[Rung],
    prompts: Mapping[str, Sequence[str]],
    load: Load,
    log: Callable[[str], None],
    on_repeat: Callable[[ReportRows], None] = lambda _: None,
) -> ReportRows:
    """Return a row for each case and rung, and one for the ladder: medians over the repeats, and their intervals.

    `on_repeat` gets the rows so far after each repeat, so that a run that is cut off loses its last repeat only.

    Within a repeat all choices of a case run in random order on the same prompts, so that a drift of the machine
    affects all alike; ratios are medians of the ratios within repeats. The ladder observes the steps of every fixed
    rung on the same traffic, and its own; in the first repeat of a case it runs last, because it has observed nothing
    before.
    """
    rng = random.Random(load.seed)
    measurements: Measurements = {}
    chosen: dict[Case, Counter[int]] = {case: Counter() for case in cases}
    ladders = {(case.temperature, case.prompts): Ladder() for case in cases}
    runs = [(repeat, case) for repeat in range(load.repeats) for case in cases]
    for number, (repeat, case) in enumerate(runs):
        texts = _some(prompts[case.prompts], case.batch * load.turns, repeat)
        ladder = ladders[case.temperature, case.prompts]
        choices: list[RungChoice] = [*rng.sample(list(rungs), len(rungs))]
        choices.insert(rng.randrange(len(choices) + 1) if repeat else len(choices), None)
        for choice in choices:
            if choice is None:
                with steering.steer_rung(engine, ladder, users=case.batch) as counts:
                    totals = _loaded(engine, case, texts, load)
                chosen[case] += counts
            else:
                engine.set_plan(rung=choice, rows=0)
                totals = _loaded(engine, case, texts, load)
                steering.update_ladder(ladder, choice, totals)
            measurements.setdefault((case, choice), []).append(totals)
        log(f"{number + 1} of {len(runs)}: batch {case.batch}, temperature {case.temperature:g}, {case.prompts}")
        if case == cases[-1]:
            rows = _report_rows(cases, rungs, measurements, chosen)
            on_repeat(rows)
    return rows


def _report_rows(
    cases: Sequence[Case], rungs: Sequence[Rung], measurements: Measurements, chosen: Mapping[Case, Counter[int]]
) -> ReportRows:
    choices: Sequence[RungChoice] = (*rungs, None)
    return [report_row(case, choice, measurements, chosen[case]) for case in cases for choice in choices]


def _some(prompts: Sequence[str], count: int, repeat: int) -> list[str]:
    """Return `count` prompts: other ones in each repeat, as long as there are enough."""
    start = repeat * count % len(prompts)
    return list(itertools.islice(itertools.cycle(prompts), start, start + count))


def _loaded(engine: Engine, case: Case, prompts: Sequence[str], load: Load) -> Totals:
    """Keep `case.batch` answers in flight until one user has no prompt left; return the engine's counts until then.

    After that the batch is smaller than the case says.
    """
    waiting: Iterator[tuple[int, str]] = iter(enumerate(prompts))
    lock, ended = threading.Lock(), threading.Event()
    at_end: list[Totals] = []

    def user() -> None:
        while True:
            with lock:
                number, prompt = next(waiting, (-1, ""))
                if number < 0 and not ended.is_set():
                    ended.set()
                    at_end.append(engine.totals())
            if number < 0:
                return
            engine.answer(prompt, max_tokens=load.max_tokens, temperature=case.temperature, seed=load.seed + number)

    before = engine.totals()
    with ThreadPoolExecutor(case.batch) as users:
        for future in [users.submit(user) for _ in range(case.batch)]:
            future.result()
    return at_end[0].since(before)
