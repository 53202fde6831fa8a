"""`sparktier bench speculation`: each rung and the ladder's choice, interleaved, by batch, temperature and prompts.

Counts engine time of decode steps only, so prefill and clients don't blur it.
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
from sparktier.serving.bench import steering as climb
from sparktier.serving.bench.rows import Case, Found, Rows, Way, report_row
from sparktier.serving.bench.target import Totals

Say = Callable[[str], None]


class Engine(climb.Engine, Protocol):
    """What is measured; `target.Target` is one."""

    def answer(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> int:
        """Answer a prompt."""


@dataclass(frozen=True)
class Load:
    """How each case is loaded: `turns` prompts for each user in the batch, answers up to `max_tokens`."""

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
    say: Say,
    keep: Callable[[Rows], None] = lambda _: None,
) -> Rows:
    """Return a row per case and rung, and one for the ladder: medians over the repeats, and how sure they are.

    `keep` gets the rows so far after each repeat, so that a run that is cut off loses the last one only.

    Within a repeat all of a case follow each other in random order on the same prompts, so that drift of the machine
    hits all alike; ratios are medians of the ratios within repeats. The ladder learns from every fixed rung's steps on
    the same traffic, and from its own; in a case's first repeat it comes last, having nothing to go by before.
    """
    rng = random.Random(load.seed)
    found: Found = {}
    chosen: dict[Case, Counter[int]] = {case: Counter() for case in cases}
    ladders = {(case.temperature, case.prompts): Ladder() for case in cases}
    runs = [(repeat, case) for repeat in range(load.repeats) for case in cases]
    for number, (repeat, case) in enumerate(runs):
        texts = _some(prompts[case.prompts], case.batch * load.turns, repeat)
        ladder = ladders[case.temperature, case.prompts]
        ways: list[Way] = [*rng.sample(list(rungs), len(rungs))]
        ways.insert(rng.randrange(len(ways) + 1) if repeat else len(ways), None)
        for way in ways:
            if way is None:
                with climb.climbing(engine, ladder, users=case.batch) as choices:
                    totals = _loaded(engine, case, texts, load)
                chosen[case] += choices
            else:
                engine.set_plan(rung=way, rows=0)
                totals = _loaded(engine, case, texts, load)
                climb.learn(ladder, way, totals)
            found.setdefault((case, way), []).append(totals)
        say(f"{number + 1} of {len(runs)}: batch {case.batch}, temperature {case.temperature:g}, {case.prompts}")
        if case == cases[-1]:
            rows = [report_row(case, way, found, chosen[case]) for case in cases for way in (*rungs, None)]
            keep(rows)
    return rows


def _some(prompts: Sequence[str], count: int, repeat: int) -> list[str]:
    """`count` prompts, others in each repeat as far as there are enough."""
    start = repeat * count % len(prompts)
    return list(itertools.islice(itertools.cycle(prompts), start, start + count))


def _loaded(engine: Engine, case: Case, prompts: Sequence[str], load: Load) -> Totals:
    """Keep `case.batch` answers in flight until one user has no prompt left, and return what the engine did till then.

    What follows is a batch that runs empty, which is not the batch size asked for.
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
