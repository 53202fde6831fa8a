"""An engine without a model: the steps that fit into the time a benchmark sleeps, each as long as a table says."""

import math
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparktier.configs.step_times import StepTimeTable, reference_table
from sparktier.serving.bench.counters import Totals
from sparktier.serving.bench.step_time_fit import Window, predicted_ms
from sparktier.serving.bench.step_windows import Clock

TABLE = reference_table("avx2")
ROWS = {0: 1, 1: 3, 2: 6, 3: 12}


@dataclass
class SimulatedEngine:
    """Runs the steps that fit into the time that the profile sleeps; a step takes what the table says of it."""

    table: StepTimeTable = TABLE
    noise: float = 0.0
    run_s: float = math.inf
    """The machine becomes twice as slow until then, and fast again until twice as much."""
    most_running: int = 1_000
    now_s: float = 0.0
    rung: int = 0
    budget: int = 0
    running: int = 0
    aborts: int = 0
    totals_now: Totals = field(default_factory=lambda: Totals(0, 0, 0, 0, {}))
    changed: threading.Condition = field(default_factory=threading.Condition)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(11))
    sizes_seen: set[int] = field(default_factory=set)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, self.sleep)

    @property
    def drift(self) -> float:
        return 1.5 - 0.5 * math.cos(math.pi * self.now_s / self.run_s)

    def set_plan(self, **keys: float) -> None:
        self.rung, self.budget = int(keys["rung"]), int(keys["rows"])

    def totals(self) -> Totals:
        return self.totals_now

    def chat(self, prompt: str, **parameters: float) -> dict[str, Any]:
        words = len(prompt.split())
        if parameters["max_tokens"] == 1:
            self.now_s += (20.0 + words) / 1000.0
        else:
            with self.changed:
                aborted, self.running = self.aborts, self.running + 1
                self.changed.wait_for(lambda: self.aborts > aborted)
                self.running -= 1
        return {"usage": {"prompt_tokens": 2 * words}}

    def abort_all(self) -> None:
        with self.changed:
            self.aborts += 1
            self.changed.notify_all()

    def sleep(self, seconds: float) -> None:
        time.sleep(0.002)  # lets the users' threads come
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            if users := min(self.running, self.most_running):
                self.sizes_seen.add(users)
                self.now_s += self._step(users) / 1000.0
            else:
                self.now_s = end_s

    def _step(self, users: int) -> float:
        rows = min(users * ROWS[self.rung], self.budget or math.inf)
        step = Window(0.0, self.rung, users, rows, 0.0, 0.0, 0.0, is_reference=False)
        off_ms = predicted_ms(self.table, Window(0.0, 0, users, rows, 0.0, 0.0, 0.0, is_reference=False))
        draft_ms = predicted_ms(self.table, step) - off_ms
        factor = self.drift * float(self.rng.normal(1.0, self.noise))
        was = self.totals_now
        parts = {
            "draft": was.part_ms.get("draft", 0.0) + 0.8 * draft_ms * factor,
            "inject": was.part_ms.get("inject", 0.0) + 0.2 * draft_ms * factor,
            "verify": was.part_ms.get("verify", 0.0) + off_ms * factor,
        }
        counts = (was.steps + 1, was.rounds + users, was.rows + rows, was.tokens + 1.5 * users)
        self.totals_now = Totals(*counts, parts)
        return (off_ms + draft_ms) * factor
