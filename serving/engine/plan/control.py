"""The plan's way into SGLang and back: numeric keys of `POST /set_internal_state`, and what `GET /server_info` shows.

Both hooks extend a method of SGLang's own controller, which calls them between steps, on every rank in the same pass of
the scheduler's loop. SGLang's knobs that make acceptance lossy are refused here too.
"""

import logging
from collections.abc import Mapping
from typing import Any

from sparktier.configs.plan_keys import LATCH_KEY, PREFIX
from sparktier.serving.engine.plan.in_force import LatchSet, PlanExpired, PlanInForce, plan_in_force

logger = logging.getLogger(__name__)
# SGLang's bound on requests in a batch; from there on a request of more priority takes a place in it.
_SEATS = "pp_max_micro_batch_size"
_LOSSY = "speculative_accept_threshold_"
_BY_ORDER = "an operator ordered it"


def install() -> None:
    """Hook SGLang's internal-state controller in this process."""
    from sglang.srt.managers.io_struct import SetInternalStateReq
    from sglang.srt.managers.scheduler_components import internal_state

    controller = internal_state.SchedulerInternalStateController
    stock_set, stock_speculative = controller.set_internal_state, controller._add_speculative

    def set_internal_state(self: Any, recv_req: Any) -> Any:
        keys, scheduler = recv_req.server_args, self.scheduler
        plan = plan_in_force(scheduler)
        is_plan, seats = any(key.startswith(PREFIX) for key in keys), plan.plan.seats
        refused = _refused(keys, scheduler.draft_worker)
        if refused is not None:
            plan.refused = refused
        elif LATCH_KEY in keys:
            refused = _switched(plan, keys)
        elif is_plan:
            refused = plan.take(keys)
        if refused is not None:
            internal_state.logger.warning("%s refused: %s", "plan" if is_plan else "setting", refused)
            return internal_state.SetInternalStateReqOutput(updated=False)
        if not is_plan:
            return stock_set(self, recv_req)
        _apply(plan, scheduler)
        if plan.plan.seats != seats:
            most = scheduler.max_running_requests
            wanted = {_SEATS: most if plan.plan.seats is None else min(most, plan.plan.seats)}
            stock_set(self, SetInternalStateReq(server_args=wanted))
        return internal_state.SetInternalStateReqOutput(updated=True)

    def add_speculative(self: Any, state: dict[str, Any]) -> None:
        stock_speculative(self, state)
        state["sparktier"] = plan_in_force(self.scheduler).read_back()

    controller.set_internal_state = set_internal_state
    controller._add_speculative = add_speculative


def _switched(plan: PlanInForce, keys: Mapping[str, float]) -> str | None:
    """Latch or resume as `keys` say; or change nothing, and return why not."""
    if set(keys) != {LATCH_KEY} or keys[LATCH_KEY] not in (0, 1):
        return f"{LATCH_KEY} must be 0 or 1, and sent without other keys (found {dict(keys)})"
    if keys[LATCH_KEY]:
        plan.latch(_BY_ORDER)
    else:
        plan.resume()
    return None


def watch_plan(scheduler: Any) -> None:
    """Have rank 0 of SGLang's `scheduler`s tell all ranks when the plan's time is over, or when they are to latch.

    What a rank's poll for late requests returns reaches every rank in the same pass of its loop, as plans do.
    """
    from sglang.utils import TypeBasedDispatcher

    plan, poll = plan_in_force(scheduler), scheduler._poll_timeout_aborts

    def poll_with_plan() -> list[Any]:
        told = [plan.time_is_over(), plan.latch_asked()]
        return [*poll(), *(each for each in told if each is not None)]

    def expire(told: PlanExpired) -> None:
        plan.expire(told)
        _apply(plan, scheduler)

    def latch(told: LatchSet) -> None:
        plan.latch(told.cause)
        _apply(plan, scheduler)
        logger.error("speculation is latched off: %s", told.cause)

    scheduler._poll_timeout_aborts = poll_with_plan
    scheduler._request_dispatcher += TypeBasedDispatcher([(PlanExpired, expire), (LatchSet, latch)])


def _apply(plan: PlanInForce, scheduler: Any) -> None:
    if scheduler.draft_worker is not None:
        scheduler.draft_worker.set_plan(plan.plan)


def _refused(keys: Mapping[str, float], worker: Any) -> str | None:
    """Return why `keys` are not even looked at, or None."""
    for key, value in keys.items():
        if key.startswith(_LOSSY):
            return f"{key} must stay as it is: other thresholds change what a target says (found {value})"
    fixed = worker is not None and not getattr(worker, "takes_plans", False)
    if fixed and any(key.startswith(PREFIX) for key in keys):
        return "a plan must go to an engine with a ladder (found one whose depth is fixed by its speculation.method)"
    return None
