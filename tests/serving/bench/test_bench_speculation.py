"""The benchmark's arithmetic against an engine of known speed, and the counters on a metrics page."""

import random
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from sparktier.configs.plan_keys import Rung
from sparktier.serving.bench.counters import Totals, totals_in
from sparktier.serving.bench.measurements import Case, Measurements, median_interval, report_row
from sparktier.serving.bench.speculation import Load, measure

LENGTHS = {0: 1.0, 2: 2.5}
STEP_MS = {0: 100.0, 2: 125.0}


@dataclass
class KnownEngine:
    """Answers at once; each answer counts as decode steps of the rung's known length and time."""

    step_ms: dict[int, float] = field(default_factory=STEP_MS.copy)
    rung: int = 0
    tokens: float = 0.0
    rounds: float = 0.0
    ms: float = 0.0
    answered: list[tuple[int, str]] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def set_plan(self, **keys: float) -> None:
        self.rung = int(keys["rung"])

    def answer(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> int:
        with self.lock:
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
            self.answered.append((self.rung, prompt))
            self.tokens += max_tokens
            self.rounds += max_tokens / LENGTHS[self.rung]
            self.ms += max_tokens / LENGTHS[self.rung] * self.step_ms[self.rung]
        with self.lock:
            self.in_flight -= 1
        return max_tokens

    def totals(self) -> Totals:
        parts = {"draft": 0.15 * self.ms, "inject": 0.05 * self.ms, "verify": 0.7 * self.ms, "overhead": 0.1 * self.ms}
        return Totals(self.rounds, self.rounds, 4 * self.rounds, self.tokens, parts)


def measured(engine: KnownEngine, rungs: Sequence[int] = (0, 2), batch: int = 1) -> list[dict[str, object]]:
    load = Load(turns=3, max_tokens=50, repeats=4, seed=1)
    prompts = {"set": [f"prompt {number}" for number in range(20)]}
    return measure(engine, [Case(batch, 0.0, "set")], rungs, prompts, load, log=lambda _: None)


def test_rows_hold_what_the_engine_did() -> None:
    off, chain, _ = measured(KnownEngine())
    assert (off["mode"], chain["mode"], chain["rung"]) == ("off", "chain", "chain")
    assert off["ratio_to_off"] == pytest.approx(1.0)
    assert chain["accepted_length"] == pytest.approx(2.5)
    assert chain["tok_s"] == pytest.approx(2.5 * 1000 / 125)
    assert chain["ratio_to_off"] == pytest.approx(2.0)
    # Ideal: 2.5 tokens a step of 112.5 ms of forwards, against a step of 100 ms.
    assert chain["realised_frac"] == pytest.approx(2.0 / (2.5 * 100 / 112.5))
    assert chain["overhead_ms"] == pytest.approx(12.5)
    assert chain["draft_ms"] == pytest.approx(25.0)
    assert chain["rows"] == pytest.approx(4.0)


def test_every_rung_gets_the_same_prompts_and_repeats_get_others() -> None:
    engine = KnownEngine()
    measured(engine)
    by_rung = {rung: sorted(prompt for at, prompt in engine.answered if at == rung) for rung in (0, 2)}
    # The ladder, knowing both, asks the faster one for the same prompts again.
    assert sorted(2 * by_rung[0]) == by_rung[2]
    assert len(set(by_rung[0])) > 3


def test_the_ladder_runs_the_rung_that_is_faster_here() -> None:
    off, chain, ladder = measured(KnownEngine())
    assert (ladder["mode"], ladder["rung"]) == ("ladder", "ladder")
    assert ladder["tok_s"] == pytest.approx(chain["tok_s"])
    assert ladder["chosen"] == {"chain": 4}
    assert ladder["ratio_to_best"] == pytest.approx(1.0)
    assert off["ratio_to_best"] == pytest.approx(0.5)
    slow = KnownEngine(step_ms={0: 100.0, 2: 300.0})
    assert measured(slow)[2]["chosen"] == {"off": 4}


def totals_at(step_ms: float) -> Totals:
    return Totals(10, 10, 10, 10, {"draft": 0.0, "verify": 10 * step_ms, "overhead": 0.0})


def test_a_machine_that_drifts_does_not_move_ratios_nor_the_best_rung() -> None:
    case, drift = Case(1, 0.0, "set"), [1.0, 3.0, 1.0, 2.0, 9.0]
    measurements: Measurements = {
        (case, Rung.OFF): [totals_at(100 * slow) for slow in drift],
        (case, Rung.CHAIN): [totals_at(80 * slow) for slow in drift],
        # Best in three repeats of five, though its median speed over all of them is not.
        (case, Rung.TREE): [totals_at(ms * slow) for ms, slow in zip((90, 75, 200, 75, 75), drift, strict=True)],
    }
    chain, tree = (report_row(case, rung, measurements, {}) for rung in (Rung.CHAIN, Rung.TREE))
    assert (chain["ratio_to_off"], chain["ratio_to_off_low"]) == pytest.approx((1.25, 1.25))
    assert tree["tok_s"] < chain["tok_s"]
    assert (tree["ratio_to_best"], chain["ratio_to_best"]) == pytest.approx((1.0, 75 / 80))


def test_an_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    rng = random.Random(7)
    intervals = [median_interval([rng.gauss(1.0, 0.1) for _ in range(25)]) for _ in range(200)]
    assert 0.88 <= statistics.mean(low <= 1.0 <= high for low, high in intervals) <= 0.99
    assert statistics.mean(high - low for low, high in intervals) < 0.12
    assert median_interval([2.0, 1.0, 4.0]) == (1.0, 4.0)


def test_what_was_measured_is_kept_after_each_repeat() -> None:
    kept: list[list[dict[str, object]]] = []
    load = Load(turns=1, max_tokens=50, repeats=3, seed=1)
    cases = [Case(1, 0.0, "set"), Case(2, 0.0, "set")]
    rows = measure(KnownEngine(), cases, (0, 2), {"set": ["a", "b"]}, load, log=lambda _: None, on_repeat=kept.append)
    assert [[row["repeats"] for row in part] for part in kept] == [[1] * 6, [2] * 6, [3] * 6]
    assert kept[-1] == rows


def test_no_more_users_than_the_batch() -> None:
    engine = KnownEngine()
    measured(engine, batch=3)
    assert 1 <= engine.most <= 3


def test_counters_are_summed_over_groups_and_tiers() -> None:
    page = """
# TYPE sparktier_decode_steps counter
sparktier_decode_steps_total{dp_rank="0"} 5
sparktier_decode_steps_total{dp_rank="1"} 7
# TYPE sparktier_rounds counter
sparktier_rounds_total{dp_rank="0",tier="0"} 10
sparktier_rounds_total{dp_rank="0",tier="1"} 20
# TYPE sparktier_rows_verified counter
sparktier_rows_verified_total{dp_rank="0",tier="0"} 90
# TYPE sparktier_round_tokens counter
sparktier_round_tokens_total{dp_rank="0",tier="0"} 60
# TYPE sparktier_decode_ms counter
sparktier_decode_ms_total{dp_rank="0",part="draft"} 100
sparktier_decode_ms_total{dp_rank="1",part="draft"} 50
sparktier_decode_ms_total{dp_rank="0",part="overhead"} 8
"""
    totals = totals_in(page)
    assert totals == Totals(12, 30, 90, 60, {"draft": 150.0, "overhead": 8.0})
    assert totals.since(Totals(2, 10, 40, 20, {"draft": 50.0})) == Totals(
        10, 20, 50, 40, {"draft": 100.0, "overhead": 8.0}
    )
