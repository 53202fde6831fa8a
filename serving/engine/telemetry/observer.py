"""Collects one rank's load and step times from SGLang's scheduler, and answers requests for the rank's state.

It wraps methods of the scheduler, which costs a few host instructions per step.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from sparktier.configs.plan_keys import Plan, Rung
from sparktier.serving.engine.rank_options import Tiers
from sparktier.serving.engine.telemetry.rank_state import RankState, dump
from sparktier.serving.engine.telemetry.spec_stats import SpeculationStats
from sparktier.serving.engine.telemetry.step_times import StepTimes, UserSpeeds, speed

ASKED_BY_US = "sparktier"
"""Request id of an internal-state request that asks for rank states instead of SGLang's own answer."""
STATES = "sparktier_ranks"


class Observer:
    """Collects the load and step times of one rank; `clock` returns monotonic seconds.

    `unknown_tier_requests` counts requests that were served as the default tier because their tier is unknown.
    """

    def __init__(self, scheduler: Any, tiers: Tiers, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._scheduler = scheduler
        self._tiers = tiers
        self._clock = clock
        self.times = StepTimes()
        self._speeds = UserSpeeds()
        self.unknown_tier_requests = 0

    def install(self) -> None:
        """Hook the scheduler after each step, while idle, and when it is asked for its state."""
        scheduler, controller = self._scheduler, self._scheduler.internal_state
        process, idle, answer = scheduler.process_batch_result, scheduler.on_idle, controller.get_internal_state

        def process_batch_result(batch: Any, result: Any) -> None:
            process(batch, result)
            self.stepped(batch, result)

        def on_idle() -> None:
            idle()
            self.times.idle(self._clock())

        def get_internal_state(request: Any) -> Any:
            return _answer(self.state()) if request.rid == ASKED_BY_US else answer(request)

        scheduler.process_batch_result, scheduler.on_idle = process_batch_result, on_idle
        controller.get_internal_state = get_internal_state

    def stepped(self, batch: Any, result: Any) -> None:
        """Note the end of a step on SGLang's `batch`, whose `result` the scheduler has processed."""
        now_s = self._clock()
        record = getattr(result, "record", None)
        if record is not None:
            self._scheduler.draft_worker.count_step(record, result.num_correct_drafts_per_req_cpu)
        if batch.forward_mode.is_decode():
            # The plan may have changed since the step was launched.
            self.times.decoded(now_s, rung=int(self._plan.rung) if record is None else record.rung)
        elif batch.forward_mode.is_extend():
            self.times.prefilled(now_s)
            for request in batch.reqs:
                self._note_first_token(request, now_s)
        else:
            self.times.idle(now_s)
        for request in batch.reqs:
            if request.finished():
                self._note_end(request, now_s)

    def state(self) -> RankState:
        """Return the state of this rank; call it between steps."""
        from sglang.srt.runtime_context import get_parallel

        parallel, running = get_parallel(), list(self._running())
        plan, stats = self._plan, self._spec_stats
        contexts = [request.seqlen for request in running]
        return RankState(
            tp_rank=parallel.tp_rank,
            dp_rank=parallel.attn_dp_rank,
            is_group_leader=parallel.attn_tp_rank == 0,
            plan_version=plan.version,
            rung=int(plan.rung),
            rows=plan.rows,
            shares=plan.tiers,
            running=self._by_tier(running),
            queued=self._by_tier(self._queued()),
            kv_used_frac=self._kv_used_frac(),
            context_tokens_p50=int(statistics.median(contexts)) if contexts else 0,
            step_ms=self.times.step_ms,
            prefill_frac=self.times.prefill_frac,
            decode_steps=self.times.decode_steps,
            decode_ms=self.times.decode_ms,
            speeds=self.speeds(running),
            unknown_tier_requests=self.unknown_tier_requests,
            spec_stats=stats,
        )

    def speeds(self, running: Iterable[Any]) -> dict[int, list[float]]:
        """Return tokens per second by tier, of `running` requests and of those that ended lately."""
        now_s = self._clock()
        return self._speeds.by_tier(now_s, self._running_speeds(running, now_s))

    @property
    def _spec_stats(self) -> SpeculationStats:
        return getattr(self._scheduler.draft_worker, "spec_stats", _NO_STATS)

    @property
    def _plan(self) -> Plan:
        return getattr(self._scheduler.draft_worker, "plan", _NO_PLAN)

    def _note_first_token(self, request: Any, now_s: float) -> None:
        # A retracted request comes back with more than one token.
        if len(request.output_ids) != 1:
            return
        # Stored on the request, so that it goes when the request leaves a queue.
        request.sparktier_first_token_s = now_s
        self.unknown_tier_requests += self._tiers.is_unknown(request.sampling_params.custom_params)

    def _note_end(self, request: Any, now_s: float) -> None:
        # With overlapped scheduling a request that has ended is still in the batch that was launched meanwhile.
        first_s = request.__dict__.pop("sparktier_first_token_s", None)
        if first_s is not None:
            tier = self._tiers.of(request.sampling_params.custom_params)
            self._speeds.ended(now_s, tier=tier, tokens=len(request.output_ids), first_token_s=first_s)

    def _running(self) -> Iterable[Any]:
        """Return requests in a batch or between two chunks of their prompt, with those that were just prefilled."""
        scheduler = self._scheduler
        batches = (scheduler.running_batch, scheduler.last_batch)
        found = {request.rid: request for batch in batches if batch is not None for request in batch.reqs}
        if scheduler.chunked_req is not None:
            found[scheduler.chunked_req.rid] = scheduler.chunked_req
        waiting = {request.rid for request in self._queued()}
        return (request for request in found.values() if not request.finished() and request.rid not in waiting)

    def _queued(self) -> list[Any]:
        return [*self._scheduler.waiting_queue, *self._scheduler.grammar_manager.grammar_queue]

    def _by_tier(self, requests: Iterable[Any]) -> Counter[int]:
        return Counter(self._tiers.of(request.sampling_params.custom_params) for request in requests)

    def _running_speeds(self, running: Iterable[Any], now_s: float) -> Iterator[tuple[int, float]]:
        for request in running:
            first_s = getattr(request, "sparktier_first_token_s", now_s)
            rate = speed(len(request.output_ids), first_token_s=first_s, last_token_s=now_s)
            if rate is not None:
                yield self._tiers.of(request.sampling_params.custom_params), rate

    def _kv_used_frac(self) -> float:
        _, used_frac = self._scheduler.pool_stats_observer.get_pool_stats().get_kv_token_stats()
        return min(1.0, max(0.0, float(used_frac)))


_NO_STATS = SpeculationStats(block_tokens=0)
_NO_PLAN = Plan(rung=Rung.OFF)


def _answer(state: RankState) -> Any:
    """Return SGLang's message with the states of all ranks that got the same request in the same loop pass."""
    from sglang.srt.managers.io_struct import GetInternalStateReqOutput
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    local = parallel.attn_dp_enabled and parallel.enable_dp_attention_local_control_broadcast
    group = parallel.attn_tp_group if local else parallel.tp_group
    states: list[Any] = [state]
    if group.world_size > 1:
        states = [None] * group.world_size
        torch.distributed.all_gather_object(states, state, group=group.cpu_group)
    return GetInternalStateReqOutput(internal_state={STATES: dump(states)})
