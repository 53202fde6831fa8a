"""SGLang's verify planner for a worker that counts rows itself: drafts need no confidence head."""

from types import SimpleNamespace
from typing import Any

from sglang.srt.speculative.dspark_components.dspark_planner import DSparkVerifyPlanner


class HeadlessPlanner(DSparkVerifyPlanner):
    """What SGLang's worker asks about graphs and modes.

    Where rows differ by request (GPUs) SGLang's own refuses a draft without a confidence head, which it would budget
    rows by. Our rows come from the plan and no confidence is ever computed, so any head will do.
    """

    def __init__(self, *, draft_model: Any, **facts: Any) -> None:
        head = getattr(draft_model, "confidence_head", None) or SimpleNamespace()
        super().__init__(draft_model=SimpleNamespace(confidence_head=head), **facts)
