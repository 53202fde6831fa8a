"""`sparktier bench speculation`: each rung and the ladder's choice, interleaved, by batch, temperature and prompts.

Counts engine time of decode steps only, so prefill and clients don't blur it. Knows nothing of how the report looks.
"""

import itertools
import random
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from sparktier.cluster.ladder import Ladder
from sparktier.serving.bench import climb
from sparktier.serving.bench.target import Totals
from sparktier.serving.engine.speculation.plan import Rung

# The mode that the contract of reports names for a rung, and the rung's own name.
RUNGS: Mapping[Rung, tuple[str, str]] = {
    Rung.OFF: ("off", "off"),
    Rung.CHAIN_SHORT: ("chain", "short"),
    Rung.CHAIN: ("chain", "chain"),
    Rung.TREE: ("tree", "tree"),
}
_LADDER = ("ladder", "ladder")
_Way = Rung | None
"""A fixed rung, or None for whichever the ladder chooses."""
Say = Callable[[str], None]
Rows = list[dict[str, Any]]


class Engine(climb.Engine, Protocol):
    """What is measured; `target.Target` is one."""

    def answer(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> int:
        """Answer a prompt."""


@dataclass(frozen=True)
class Case:
    """One place of the grid, measured on every rung in every repeat."""

    batch: int
    temperature: float
    prompts: str


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
    """Return a row per case and rung, and one for the ladder: medians over the repeats, and the spread of the speed.

    `keep` gets the rows so far after each repeat, so that a run that is cut off loses the last one only.

    Within a repeat all of a case follow each other in random order on the same prompts, so that drift of the machine
    hits all alike; ratios are medians of the ratios within repeats. The ladder learns from every fixed rung's steps on
    the same traffic, and from its own; in a case's first repeat it comes last, having nothing to go by before.
    """
    rng = random.Random(load.seed)
    found: dict[tuple[Case, _Way], list[Totals]] = {}
    chosen: dict[Case, Counter[int]] = {case: Counter() for case in cases}
    ladders = {(case.temperature, case.prompts): Ladder() for case in cases}
    runs = [(repeat, case) for repeat in range(load.repeats) for case in cases]
    for number, (repeat, case) in enumerate(runs):
        texts = _some(prompts[case.prompts], case.batch * load.turns, repeat)
        ladder = ladders[case.temperature, case.prompts]
        ways: list[_Way] = [*rng.sample(list(rungs), len(rungs))]
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
            rows = [_row(case, way, found, chosen[case]) for case in cases for way in (*rungs, None)]
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


def _row(
    case: Case, way: _Way, found: Mapping[tuple[Case, _Way], Sequence[Totals]], chosen: Mapping[int, int]
) -> dict[str, Any]:
    own, off = found[case, way], found.get((case, Rung.OFF))
    speeds = [_tok_s(totals) for totals in own]
    to_off, to_best = _ratios(own, off), _ratios(own, _best(case, found))
    lengths = [totals.round_tokens for totals in own]
    mode, name = _LADDER if way is None else RUNGS[way]
    ideal = [
        length * plain.step_ms / _forward_ms(totals)
        for totals, plain, length in zip(own, off or (), lengths, strict=False)
    ]
    return {
        "mode": mode,
        "rung": name,
        "rows": round(statistics.median(totals.rows / totals.rounds for totals in own), 2),
        "batch": case.batch,
        "temperature": case.temperature,
        "prompts": case.prompts,
        "tok_s": statistics.median(speeds),
        "tok_s_min": min(speeds),
        "tok_s_max": max(speeds),
        "tok_s_per_user": statistics.median(speeds) / case.batch,
        "accepted_length": statistics.median(lengths),
        **_spread("ratio_to_off", to_off),
        **_spread("ratio_to_best", to_best),
        "realised_frac": statistics.median(r / i for r, i in zip(to_off, ideal, strict=True)) if to_off else None,
        "draft_ms": statistics.median(_draft_ms(totals) for totals in own),
        "verify_ms": statistics.median(_part(totals, "verify") for totals in own),
        "overhead_ms": statistics.median(totals.step_ms - _forward_ms(totals) for totals in own),
        "users": statistics.median(totals.users for totals in own),
        "chosen": {RUNGS[Rung(rung)][1]: count for rung, count in sorted(chosen.items())} if way is None else None,
        "repeats": len(own),
    }


def _best(case: Case, found: Mapping[tuple[Case, _Way], Sequence[Totals]]) -> Sequence[Totals]:
    """The runs of the fixed rung that was fastest in this case, by its median."""
    fixed = [runs for (at, way), runs in found.items() if at == case and way is not None]
    return max(fixed, key=lambda runs: statistics.median(map(_tok_s, runs)))


def _ratios(own: Sequence[Totals], others: Sequence[Totals] | None) -> list[float]:
    return [_tok_s(totals) / _tok_s(other) for totals, other in zip(own, others, strict=True)] if others else []


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {name: None, f"{name}_min": None, f"{name}_max": None}
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def _tok_s(totals: Totals) -> float:
    return totals.tokens / (sum(totals.part_ms.values()) / 1000.0)


def _part(totals: Totals, part: str) -> float:
    return totals.part_ms.get(part, 0.0) / totals.steps


def _draft_ms(totals: Totals) -> float:
    """Drafting, and keeping the draft's KV up to date: what a drafter costs."""
    return _part(totals, "draft") + _part(totals, "inject")


def _forward_ms(totals: Totals) -> float:
    return _draft_ms(totals) + _part(totals, "verify")
