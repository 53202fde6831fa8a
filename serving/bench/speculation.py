"""`sparktier bench speculation`: each rung of the ladder by batch size, temperature and prompts, interleaved.

Counts engine time of decode steps only, so prefill and clients don't blur it. Knows nothing of how the report looks.
"""

import itertools
import random
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from sparktier.serving.bench.target import Totals
from sparktier.serving.engine.speculation.plan import Rung

# The mode that the contract of reports names for a rung, and the rung's own name.
RUNGS: Mapping[Rung, tuple[str, str]] = {
    Rung.OFF: ("off", "off"),
    Rung.CHAIN_SHORT: ("chain", "short"),
    Rung.CHAIN: ("chain", "chain"),
    Rung.TREE: ("tree", "tree"),
}
Say = Callable[[str], None]


class Engine(Protocol):
    """What is measured; `target.Target` is one."""

    def answer(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> int:
        """Answer a prompt."""

    def set_plan(self, **keys: float) -> None:
        """Put plan keys in force."""

    def totals(self) -> Totals:
        """Read counters."""


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
) -> list[dict[str, Any]]:
    """Return a row per case and rung: medians over the repeats, and the spread of the speed.

    Within a repeat the rungs of a case follow each other in random order on the same prompts, so that drift of the
    machine hits all alike; `ratio_to_off` is the median of the ratios within repeats.
    """
    rng = random.Random(load.seed)
    found: dict[tuple[Case, Rung], list[Totals]] = {}
    runs = [(repeat, case) for repeat in range(load.repeats) for case in cases]
    for number, (repeat, case) in enumerate(runs):
        chosen = _some(prompts[case.prompts], case.batch * load.turns, repeat)
        for rung in rng.sample(list(rungs), len(rungs)):
            engine.set_plan(rung=rung, rows=0)
            totals = _loaded(engine, case, chosen, load)
            found.setdefault((case, rung), []).append(totals)
        say(f"{number + 1} of {len(runs)}: batch {case.batch}, temperature {case.temperature:g}, {case.prompts}")
    return [_row(case, rung, found) for case in cases for rung in rungs]


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


def _row(case: Case, rung: Rung, found: Mapping[tuple[Case, Rung], Sequence[Totals]]) -> dict[str, Any]:
    own, off = found[case, rung], found.get((case, Rung.OFF))
    speeds = [_tok_s(totals) for totals in own]
    ratios = [speed / _tok_s(plain) for speed, plain in zip(speeds, off, strict=True)] if off else []
    lengths = [totals.tokens / totals.rounds for totals in own]
    mode, name = RUNGS[rung]
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
        "ratio_to_off": statistics.median(ratios) if ratios else None,
        "ratio_to_off_min": min(ratios) if ratios else None,
        "ratio_to_off_max": max(ratios) if ratios else None,
        "realised_frac": statistics.median(r / i for r, i in zip(ratios, ideal, strict=True)) if ratios else None,
        "draft_ms": statistics.median(_draft_ms(totals) for totals in own),
        "verify_ms": statistics.median(_part(totals, "verify") for totals in own),
        "overhead_ms": statistics.median(totals.step_ms - _forward_ms(totals) for totals in own),
        "users": statistics.median(totals.rounds / totals.steps for totals in own),
        "repeats": len(own),
    }


def _tok_s(totals: Totals) -> float:
    return totals.tokens / (sum(totals.part_ms.values()) / 1000.0)


def _part(totals: Totals, part: str) -> float:
    return totals.part_ms.get(part, 0.0) / totals.steps


def _draft_ms(totals: Totals) -> float:
    """Drafting, and keeping the draft's KV up to date: what a drafter costs."""
    return _part(totals, "draft") + _part(totals, "inject")


def _forward_ms(totals: Totals) -> float:
    return _draft_ms(totals) + _part(totals, "verify")
