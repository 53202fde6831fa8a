"""The plan's way into SGLang and back: numeric keys of `POST /set_internal_state`, and what `GET /server_info` shows.

Knows nothing of steps. Both hooks extend a method of SGLang's own controller, which calls them between steps.
"""

from typing import Any

from sparktier.serving.engine.speculation.plan import Rung, is_plan_key, refusal


def install() -> None:
    """Hook SGLang's internal-state controller in this process."""
    from sglang.srt.managers.scheduler_components import internal_state

    controller = internal_state.SchedulerInternalStateController
    stock_set, stock_speculative = controller.set_internal_state, controller._add_speculative

    def set_internal_state(self: Any, recv_req: Any) -> Any:
        keys = recv_req.server_args
        if not any(is_plan_key(key) for key in keys):
            return stock_set(self, recv_req)
        worker = self.scheduler.draft_worker
        highest = getattr(worker, "highest_rung", Rung.TREE)
        problems = [
            refusal(key, value, highest=highest) if is_plan_key(key) else f"{key} is no plan key"
            for key, value in keys.items()
        ]
        wrong = [problem for problem in problems if problem]
        if wrong or not getattr(worker, "takes_plans", False):
            reason = "; ".join(wrong) or "this engine's depth is fixed"
            internal_state.logger.warning("plan refused: %s", reason)
            return internal_state.SetInternalStateReqOutput(updated=False)
        worker.set_plan(worker.plan.updated(keys))
        return internal_state.SetInternalStateReqOutput(updated=True)

    def add_speculative(self: Any, state: dict[str, Any]) -> None:
        stock_speculative(self, state)
        worker = self.scheduler.draft_worker
        if getattr(worker, "takes_plans", False):
            plan = worker.plan
            state["sparktier"] = {"plan_version": plan.version, "rung": int(plan.rung), "rows": plan.rows}

    controller.set_internal_state = set_internal_state
    controller._add_speculative = add_speculative
