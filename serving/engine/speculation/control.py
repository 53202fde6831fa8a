"""The plan's way into SGLang and back: numeric keys of `POST /set_internal_state`, and what `GET /server_info` shows.

Both hooks extend a method of SGLang's own controller, which calls them between steps. SGLang's knobs that make
acceptance lossy are refused here too.
"""

from collections.abc import Mapping
from typing import Any

from sparktier.configs.plan_keys import is_plan_key, plan_of, refusals

_LOSSY = "speculative_accept_threshold_"


def install() -> None:
    """Hook SGLang's internal-state controller in this process."""
    from sglang.srt.managers.scheduler_components import internal_state

    controller = internal_state.SchedulerInternalStateController
    stock_set, stock_speculative = controller.set_internal_state, controller._add_speculative

    def set_internal_state(self: Any, recv_req: Any) -> Any:
        keys, worker = recv_req.server_args, self.scheduler.draft_worker
        is_plan = any(is_plan_key(key) for key in keys)
        wrong = _lossy(keys) + (_plan_refusals(keys, worker) if is_plan else [])
        if wrong:
            reason = "; ".join(wrong)
            internal_state.logger.warning("%s refused: %s", "plan" if is_plan else "setting", reason)
            self.scheduler.sparktier_refused = reason
            return internal_state.SetInternalStateReqOutput(updated=False)
        if not is_plan:
            return stock_set(self, recv_req)
        worker.set_plan(plan_of(keys, before=worker.plan))
        self.scheduler.sparktier_refused = None
        return internal_state.SetInternalStateReqOutput(updated=True)

    def add_speculative(self: Any, state: dict[str, Any]) -> None:
        stock_speculative(self, state)
        worker = self.scheduler.draft_worker
        if getattr(worker, "takes_plans", False):
            refused = getattr(self.scheduler, "sparktier_refused", None)
            state["sparktier"] = {**worker.plan.read_back(), "refused": refused}

    controller.set_internal_state = set_internal_state
    controller._add_speculative = add_speculative


def _lossy(keys: Mapping[str, float]) -> list[str]:
    return [
        f"{key} must stay as it is: other thresholds change what a target says (found {value})"
        for key, value in keys.items()
        if key.startswith(_LOSSY)
    ]


def _plan_refusals(keys: Mapping[str, float], worker: Any) -> list[str]:
    if not getattr(worker, "takes_plans", False):
        return ["this engine's depth is fixed"]
    return refusals(keys, before=worker.plan, highest=worker.highest_rung)
