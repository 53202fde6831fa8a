"""Collects one rank's load and step times from SGLang's scheduler, and answers requests for the rank's state.

It wraps methods of the scheduler, which costs a few host instructions per step.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from sparktier.configs.contracts.signals import CanaryReport
from sparktier.serving.engine.plan.in_force import PlanInForce, plan_in_force
from sparktier.serving.engine.plan.request_tier import admitted, is_unknown, tier_of
from sparktier.serving.engine.telemetry.rank_state import NO_CANARY, RankState, dump
from sparktier.serving.engine.telemetry.recent_users import Arrivals, KeptPromises, RecentValues
from sparktier.serving.engine.telemetry.spec_stats import SpeculationStats
from sparktier.serving.engine.telemetry.step_times import LEAST_TOKENS, StepTimes, UserSpeeds, speed

ASKED_BY_US = "sparktier"
"""Request id of an internal-state request that asks for rank states instead of SGLang's own answer."""
STATES = "sparktier_ranks"


class Observer:
    """Collects the load and step times of one rank; `clock` returns monotonic seconds.

    `unknown_tier_requests` counts requests that were served as the default tier because their tier is unknown, and
    `retractions` by tier how often requests that have ended were put back into the queue.
    """

    def __init__(self, scheduler: Any, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self.times = StepTimes()
        self._speeds = UserSpeeds()
        self._accepted = RecentValues()
        self._arrivals = Arrivals(clock())
        self._promises = KeptPromises()
        self.unknown_tier_requests = 0
        self.retractions: dict[int, int] = {}

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
            record.phases.requests = batch.reqs
            self._scheduler.draft_worker.count_step(record, result.num_correct_drafts_per_req_cpu)
        if batch.forward_mode.is_decode():
            # The plan may have changed since the step was launched.
            took_ms = self.times.decoded(now_s, rung=int(self._plan.plan.rung) if record is None else record.rung)
            if record is not None and self._pacer is not None:
                rows = sum(record.row_counts.tolist()) + record.padding_rows
                self._pacer.took(took_ms, batch.reqs, rung=record.rung, rows=rows)
        elif batch.forward_mode.is_extend():
            self.times.prefilled(now_s, tokens=getattr(batch, "extend_num_tokens", None) or 0)
            for request in _of_clients(batch.reqs):
                self._note_first_token(request, now_s)
        else:
            self.times.idle(now_s)
        for request in _of_clients(batch.reqs):
            if request.finished():
                self._note_end(request, now_s)

    def state(self) -> RankState:
        """Return the state of this rank; call it between steps."""
        from sglang.srt.runtime_context import get_parallel

        parallel, running = get_parallel(), list(self._running())
        in_force = self._plan
        contexts = [request.seqlen for request in running]
        return RankState(
            tp_rank=parallel.tp_rank,
            dp_rank=parallel.attn_dp_rank,
            is_group_leader=parallel.attn_tp_rank == 0,
            plan=in_force.plan,
            plan_age_ms=in_force.age_ms,
            expired=in_force.expired,
            refused=in_force.refused,
            latched=in_force.latched,
            canary=self._canary,
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
            retractions=self.retractions,
            max_running=self._scheduler.max_running_requests,
            kv_tokens=self._scheduler.max_total_num_tokens,
            prefill_ms_per_token=self.times.prefill_ms_per_token,
            met=self._promises.met,
            drift_frac=None if self._pacer is None else self._pacer.drift_frac,
            **self._users(running),
            spec_stats=self._spec_stats,
        )

    def _users(self, running: list[Any]) -> dict[str, Any]:
        """Return what users got and how they came, by tier."""
        now_s, plan = self._clock(), self._plan.plan
        waiting = [(tier_of(request, plan), _arrived_s(request, now_s)) for request in self._queued()]
        ages_ms: dict[int, int] = {}
        for tier, arrived_s in waiting:
            ages_ms[tier] = max(ages_ms.get(tier, 0), round((now_s - arrived_s) * 1000.0))
        lengths = [(tier_of(request, plan), length) for request in running if (length := _accepted_length(request))]
        return {
            "queue_age_ms": ages_ms,
            "arrivals_s": self._arrivals.a_second(now_s, waiting),
            "accepted_tokens": self._accepted.by_tier(now_s, lengths),
        }

    def speeds(self, running: Iterable[Any]) -> dict[int, list[float]]:
        """Return tokens per second by tier, of `running` requests and of those that ended lately."""
        now_s = self._clock()
        return self._speeds.by_tier(now_s, self._running_speeds(running, now_s))

    @property
    def _spec_stats(self) -> SpeculationStats:
        return getattr(self._scheduler.draft_worker, "spec_stats", _NO_STATS)

    @property
    def _pacer(self) -> Any:
        """The pacer of our workers; None without one."""
        return getattr(self._scheduler.draft_worker, "pacer", None)

    @property
    def _canary(self) -> CanaryReport:
        """What the canary of this rank says."""
        canary = getattr(self._scheduler, "sparktier_canary", None)
        if canary is None:
            return NO_CANARY
        found: CanaryReport = canary.report(*self._spec_stats.first_drafts())
        return found

    @property
    def _plan(self) -> PlanInForce:
        return plan_in_force(self._scheduler)

    def _note_first_token(self, request: Any, now_s: float) -> None:
        # A retracted request comes back with more than one token.
        if len(request.output_ids) != 1:
            return
        # Stored on the request, so that it goes when the request leaves a queue.
        request.sparktier_first_token_s = now_s
        plan = self._plan.plan
        self.unknown_tier_requests += is_unknown(request, plan)
        self._arrivals.add(_arrived_s(request, now_s), tier=admitted(request, plan).tier)

    def _note_end(self, request: Any, now_s: float) -> None:
        # With overlapped scheduling a request that has ended is still in the batch that was launched meanwhile.
        first_s = request.__dict__.pop("sparktier_first_token_s", None)
        if first_s is not None:
            terms, tokens = admitted(request, self._plan.plan), len(request.output_ids)
            times = getattr(request, "retraction_count", 0)
            self.retractions[terms.tier] = self.retractions.get(terms.tier, 0) + times
            self._speeds.ended(now_s, tier=terms.tier, tokens=tokens, first_token_s=first_s)
            self._promises.ended(
                tier=terms.tier, promise_tok_s=terms.promise_tok_s, tokens=tokens, lasted_s=now_s - first_s
            )
            if length := _accepted_length(request):
                self._accepted.add(now_s, tier=terms.tier, value=length)

    def _running(self) -> Iterable[Any]:
        """Return requests in a batch or between two chunks of their prompt, with those that were just prefilled."""
        scheduler = self._scheduler
        batches = (scheduler.running_batch, scheduler.last_batch)
        found = {request.rid: request for batch in batches if batch is not None for request in batch.reqs}
        if scheduler.chunked_req is not None:
            found[scheduler.chunked_req.rid] = scheduler.chunked_req
        waiting = {request.rid for request in self._queued()}
        running = (each for each in found.values() if not each.finished() and each.rid not in waiting)
        return _of_clients(running)

    def _queued(self) -> list[Any]:
        return _of_clients([*self._scheduler.waiting_queue, *self._scheduler.grammar_manager.grammar_queue])

    def _by_tier(self, requests: Iterable[Any]) -> Counter[int]:
        plan = self._plan.plan
        return Counter(tier_of(request, plan) for request in requests)

    def _running_speeds(self, running: Iterable[Any], now_s: float) -> Iterator[tuple[int, float]]:
        plan = self._plan.plan
        for request in running:
            first_s = getattr(request, "sparktier_first_token_s", now_s)
            rate = speed(len(request.output_ids), first_token_s=first_s, last_token_s=now_s)
            if rate is not None:
                yield tier_of(request, plan), rate

    def _kv_used_frac(self) -> float:
        _, used_frac = self._scheduler.pool_stats_observer.get_pool_stats().get_kv_token_stats()
        return min(1.0, max(0.0, float(used_frac)))


_NO_STATS = SpeculationStats(block_tokens=0)


def _of_clients(requests: Iterable[Any]) -> list[Any]:
    """Return those of SGLang's `requests` that are no probes, of its own or of the canary."""
    from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX

    return [request for request in requests if not request.rid.startswith(HEALTH_CHECK_RID_PREFIX)]


def _arrived_s(request: Any, default_s: float) -> float:
    """Return when SGLang's `request` reached this rank, on the clock of `time.perf_counter`."""
    stats = getattr(request, "time_stats", None)
    return getattr(stats, "scheduler_recv_time", 0.0) or default_s


def _accepted_length(request: Any) -> float | None:
    """Return tokens a decode step of SGLang's `request`, or None for too few to tell, or without speculation."""
    steps, tokens = getattr(request, "spec_verify_ct", 0), len(request.output_ids)
    return (tokens - 1) / steps if steps > 0 and tokens >= LEAST_TOKENS else None


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
