"""The real engine in virtual time: SGLang's scheduler and our worker, under a clock that a frozen table advances.

It takes the requests of the simulated engine and returns the same records of its steps. Tokens, rows and acceptance are
those of the model; only how long a step takes is the table's.
"""

from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from sparktier.cluster.simulator.sim_engine import Ended, SimRequest, SimStep
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.plan_keys import TIER_PARAM, EnginePlan
from sparktier.serving.engine.speculation.pacing import Pacer
from sparktier.serving.engine.stepping import SteppedEngine
from sparktier.serving.engine.telemetry.observer import Observer

# No run finds another's prompts in the cache.
_RUNS = count(1)


class VirtualClock:
    """Seconds that pass only when somebody sets them."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now_s


@dataclass
class _Asked:
    request: SimRequest
    submitted_ms: float
    first_ms: float = 0.0
    delivered: int = 0


class VirtualEngine:
    """A `SteppingEngine` whose requests have token ids. One run follows another on the same engine."""

    def __init__(self, engine: SteppedEngine, times: StepTimeModel) -> None:
        self._engine, self._times = engine, times
        self.clock = VirtualClock()
        Observer(engine.scheduler, clock=self.clock).install()
        self._rung = 0
        self._run = 0
        self._asked: dict[str, _Asked] = {}
        self.unlike: list[tuple[int, ...]] = []
        """Keys of requests of this run whose answers are not the recorded ones."""

    def start(self, plan: EnginePlan, pacer: Pacer | None) -> None:
        """Begin a run under `plan`, whose steps `pacer` plans; what is left of the run before ends."""
        self._engine.abort()
        self._engine.worker.set_plan(plan)
        self._engine.worker.set_pacer(pacer)
        self._rung, self._run = int(plan.rung), next(_RUNS)
        self._asked, self.unlike = {}, []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._asked

    def submit(self, request: SimRequest, *, now_ms: float) -> None:
        """Queue a request.

        Raises:
            ValueError: its answer has no token ids, or its prompt is to be prefilled elsewhere.
        """
        ids = request.answer.ids
        if ids is None or len(ids.prompt) != request.prompt_tokens:
            raise ValueError("the real engine needs the token ids of prompts, and prefills them itself")
        request_id = "-".join(map(str, (self._run, *request.key)))
        self._asked[request_id] = _Asked(request, now_ms)
        self._engine.add(
            request_id,
            ids.prompt,
            new_tokens=request.answer.tokens,
            cache_key=request_id,
            custom_params={TIER_PARAM: request.tier},
        )

    def step(self, *, now_ms: float) -> SimStep:
        """Run one step that starts at `now_ms`: the clock stands still in it, and then advances by its time."""
        self.clock.now_s = now_ms / 1000.0
        batches: list[tuple[Any, list[int], float]] = []

        def ran(batch: Any, result: Any) -> None:
            rows, took_ms = self._took(batch, result)
            batches.append((batch, rows, took_ms))
            self.clock.now_s = (now_ms + took_ms) / 1000.0

        self._engine.step(ran)
        ((batch, rows, took_ms),) = batches
        return self._stepped(list(batch.reqs), rows, now_ms, took_ms)

    def _took(self, batch: Any, result: Any) -> tuple[list[int], float]:
        """Rows of each request, none of a prefill, and the time of the step in ms."""
        if batch.forward_mode.is_extend():
            return [], self._times.prefill_ms(batch.extend_num_tokens)
        rows: list[int] = result.record.row_counts.tolist()
        context_tokens = sum(len(each.origin_input_ids) + len(each.output_ids) for each in batch.reqs)
        total = np.array([sum(rows)], dtype=np.int64)
        took_ms = self._times.step_ms(rung=self._rung, requests=len(rows), rows=total, context_tokens=context_tokens)
        return rows, float(took_ms[0])

    def _stepped(self, requests: list[Any], rows: list[int], now_ms: float, took_ms: float) -> SimStep:
        keys, tokens, ended = [], [], []
        for each in requests:
            asked = self._asked[each.rid]
            gained = len(each.output_ids) - asked.delivered
            if gained == 0:  # its prompt goes on
                continue
            if asked.delivered == 0:
                asked.first_ms = now_ms + took_ms
            asked.delivered += gained
            keys.append(asked.request.key)
            tokens.append(gained)
            if each.finished():
                del self._asked[each.rid]
                ended.append(Ended(asked.request, asked.submitted_ms, asked.first_ms, now_ms + took_ms))
                ids = asked.request.answer.ids
                assert ids is not None
                if tuple(each.output_ids) != ids.answer:
                    self.unlike.append(asked.request.key)
        # What was not verified is not known to be accepted: `whole_tokens` are the tokens.
        gains = np.array(tokens, dtype=np.int64)
        return SimStep(took_ms, keys, np.array(rows, dtype=np.int64), gains, ended, gains)
