"""Measures windows of decode steps on a running engine: every rung at every batch size, between references.

A run is blocks. Each keeps one batch size in flight and measures the rungs in random order. Between two of them comes
the reference, the smallest batch without drafts: it tells how slow the machine is at the time.
"""

import contextlib
import random
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, Protocol

from sparktier.configs.errors import ReplicaError
from sparktier.configs.plan_keys import Rung
from sparktier.configs.step_times import Curve
from sparktier.serving.bench import steering
from sparktier.serving.bench.counters import Totals
from sparktier.serving.bench.step_time_fit import Window

# Long answers, so that hardly one ends, and another one's prefill comes, within a window.
_ANSWER_TOKENS = 256
_SHORT_PROMPT_WORDS, _LONG_PROMPT_WORDS = 16, 200
_PREFILL_WORDS = (8, 32, 128, 512)
_LEAST_STEPS = 8
_MOST_WAITS = 20
# A batch counts as full with this share of its requests in a mean step.
_FULL_FRAC = 0.9
_ABORT_EVERY_S = 0.5
# A step may outlast the time limit of a reading, when a prefill or a compilation is in it.
_READINGS = 3
# Of a prompt's lists of items, more than any tokenizer makes of them.
_TOKENS_PER_WORD = 4


class Engine(steering.Engine, Protocol):
    """An engine that also answers prompts, such as `MeasuredReplica`."""

    def chat(self, prompt: str, **parameters: float) -> dict[str, Any]:
        """Return the OpenAI completion of a prompt."""

    def abort_all(self) -> None:
        """End every request that is running."""


@dataclass(frozen=True)
class ProfileLoad:
    """What a run measures."""

    sizes: Sequence[int]
    """Requests at once, rising; the first is the reference's."""
    repeats: int
    window_s: float
    seed: int
    context_tokens: int
    """Of a request; prompts that would not fit are shorter or left out."""
    groups: int = 1
    """Attention groups, which share out the requests; a step is one of a group."""

    @property
    def most_prompt_words(self) -> int:
        """Words of the longest prompt that leaves room for an answer."""
        return max(_PREFILL_WORDS[0], (self.context_tokens - _ANSWER_TOKENS) // _TOKENS_PER_WORD)


@dataclass(frozen=True)
class Clock:
    """Time, as the run sees it."""

    now_s: Callable[[], float]
    sleep: Callable[[float], None]


class Measured(NamedTuple):
    """What a run found."""

    windows: Sequence[Window]
    """In order of time."""
    prefill_ms: Curve
    """Medians by prompt tokens of an answer of one token to one user; HTTP and the first token are part of it."""


def measure(
    engine: Engine, rungs: Sequence[Rung], load: ProfileLoad, *, clock: Clock, log: Callable[[str], None]
) -> Measured:
    """Measure the grid of rungs and sizes `load.repeats` times.

    Raises:
        ReplicaError: the engine refused a plan or a prompt, did not run as many requests at once, or hardly a step.
    """
    rng = random.Random(load.seed)
    windows: list[Window] = []
    prefills: dict[int, list[float]] = {}
    for repeat in range(load.repeats):
        words = min(_LONG_PROMPT_WORDS if repeat % 2 else _SHORT_PROMPT_WORDS, load.most_prompt_words)
        for size in rng.sample(list(load.sizes), len(load.sizes)):
            windows += _reference(engine, load, clock)
            cells = _cells(rungs, max(1, size // load.groups))
            windows += _block(engine, size, rng.sample(cells, len(cells)), words, load, clock)
        for tokens, took_ms in _prefills(engine, load, rng, clock):
            prefills.setdefault(tokens, []).append(took_ms)
        log(f"{repeat + 1} of {load.repeats} passes over {len(load.sizes)} batch sizes and {len(rungs)} rungs")
    windows += _reference(engine, load, clock)
    return Measured(windows, tuple((tokens, statistics.median(times)) for tokens, times in sorted(prefills.items())))


def _cells(rungs: Sequence[Rung], size: int) -> list[tuple[Rung, int]]:
    """Each rung with all its rows, and the highest with one drafted row for each request: rows are not requests."""
    trimmed = [(rungs[-1], 2 * size)] if rungs[-1] > Rung.OFF else []
    return [*((rung, 0) for rung in rungs), *trimmed]


def _reference(engine: Engine, load: ProfileLoad, clock: Clock) -> list[Window]:
    words = min(_SHORT_PROMPT_WORDS, load.most_prompt_words)
    return _block(engine, load.sizes[0], [(Rung.OFF, 0)], words, load, clock, is_reference=True)


def _block(
    engine: Engine,
    size: int,
    cells: Sequence[tuple[Rung, int]],
    prompt_words: int,
    load: ProfileLoad,
    clock: Clock,
    *,
    is_reference: bool = False,
) -> list[Window]:
    """Measure `cells` (rung and row budget) with `size` requests in flight."""
    engine.set_plan(rung=cells[0][0], rows=0)
    prompt_tokens = _answer_one_token(engine, _prompt(prompt_words, size))
    with _in_flight(engine, size, prompt_words, load.seed):
        start = _filled(engine, size, load, clock)
        windows = []
        for rung, budget in cells:
            engine.set_plan(rung=rung, rows=budget)
            counted, at_s, delivered = _counted(engine, start, load, clock)
            context_tokens = size * (prompt_tokens + delivered / size % _ANSWER_TOKENS) / load.groups
            # Groups' passes are as long as the longest, so what a group fills up costs it as much as its own rows.
            rows = counted.rows + (counted.padding_rows if load.groups > 1 else 0.0)
            windows.append(_window(counted, at_s, rung, rows, context_tokens, is_reference=is_reference))
    return windows


def _totals(engine: Engine) -> Totals:
    """Read counters, again where a rank did not answer in time. Raises the last ReplicaError."""
    for _ in range(_READINGS - 1):
        with contextlib.suppress(ReplicaError):
            return engine.totals()
    return engine.totals()


def _window(
    counted: Totals, at_s: float, rung: Rung, rows: float, context_tokens: float, *, is_reference: bool
) -> Window:
    draft_ms = (counted.part_ms.get("draft", 0.0) + counted.part_ms.get("inject", 0.0)) / counted.steps
    return Window(
        at_s=at_s,
        rung=int(rung),
        requests=counted.users,
        rows=rows / counted.steps,
        context_tokens=context_tokens,
        draft_ms=draft_ms,
        rest_ms=counted.step_ms - draft_ms,
        is_reference=is_reference,
    )


def _counted(engine: Engine, start: Totals, load: ProfileLoad, clock: Clock) -> tuple[Totals, float, float]:
    """Return what the engine counts in a window, the middle of it, and tokens delivered since `start`."""
    # The step under way still has the plan before.
    clock.sleep(load.window_s / 4)
    before, from_s = _totals(engine), clock.now_s()
    for _ in range(_MOST_WAITS):
        clock.sleep(load.window_s)
        after = _totals(engine)
        if (counted := after.since(before)).steps >= _LEAST_STEPS:
            return counted, (from_s + clock.now_s()) / 2, after.tokens - start.tokens
    raise ReplicaError(
        f"A window must hold {_LEAST_STEPS} decode steps (found {counted.steps:.0f} in {_MOST_WAITS * load.window_s:g} "
        "s). Give fewer users or a longer --seconds."
    )


def _filled(engine: Engine, size: int, load: ProfileLoad, clock: Clock) -> Totals:
    """Wait until `size` requests share the engine's steps, and return its counters then."""
    before = _totals(engine)
    for _ in range(_MOST_WAITS):
        clock.sleep(load.window_s)
        after = _totals(engine)
        counted, before = after.since(before), after
        users = load.groups * counted.users if counted.steps else 0.0
        if users >= _FULL_FRAC * size:
            return after
    raise ReplicaError(
        f"The engine must run {size} requests at once (found {users:.1f} in a step). Give smaller batches, or more "
        "room: replicas.max_running_requests, replicas.kv_tokens."
    )


@contextlib.contextmanager
def _in_flight(engine: Engine, size: int, prompt_words: int, seed: int) -> Iterator[None]:
    """Keep `size` answers in flight while the body runs.

    Raises:
        ReplicaError: the engine refused a prompt; raised after the body.
    """
    ended, numbers = threading.Event(), count()

    def user() -> None:
        while not ended.is_set():
            try:
                engine.chat(_prompt(prompt_words, next(numbers)), max_tokens=_ANSWER_TOKENS, ignore_eos=True, seed=seed)
            except ReplicaError:
                # What is aborted at the end may come back as an error.
                if not ended.is_set():
                    raise

    with ThreadPoolExecutor(size) as users:
        futures = [users.submit(user) for _ in range(size)]
        try:
            yield
        finally:
            ended.set()
            engine.abort_all()
            # A request that was sent just now may miss one call.
            while wait(futures, timeout=_ABORT_EVERY_S).not_done:
                engine.abort_all()
        for future in futures:
            future.result()


def _prefills(engine: Engine, load: ProfileLoad, rng: random.Random, clock: Clock) -> Iterator[tuple[int, float]]:
    """Yield prompt tokens and time of one-token answers, prompts of each length in random order."""
    engine.set_plan(rung=Rung.OFF, rows=0)
    lengths = [words for words in _PREFILL_WORDS if words <= load.most_prompt_words]
    for words in rng.sample(lengths, len(lengths)):
        # A prompt of its own: the engine keeps the prefixes of those it knows.
        prompt, start_s = _prompt(words, rng.randrange(10**6)), clock.now_s()
        prompt_tokens = _answer_one_token(engine, prompt)
        yield prompt_tokens, 1000.0 * (clock.now_s() - start_s)


def _answer_one_token(engine: Engine, prompt: str) -> int:
    """Have one token answered and return how many tokens the prompt has."""
    return int(engine.chat(prompt, max_tokens=1)["usage"]["prompt_tokens"])


def _prompt(words: int, number: int) -> str:
    """A prompt of about `words` words that begins like no other."""
    return " ".join([f"{number}", *(f"item {number + place}," for place in range(words // 2)), "continue this list."])
