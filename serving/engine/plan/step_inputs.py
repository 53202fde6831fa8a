"""What a decode step reads: one frozen value that the worker makes for each step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.serving.engine.plan.group_step import GroupStep


@dataclass(frozen=True)
class StepInputs:
    """One step's batch, the plan in force, and facts of its requests; tensors are [batch] int64, on the host.

    Args:
        batch: SGLang's `ScheduleBatch` of decoding requests, lengths as before the step.
        window: SGLang's KV slots and positions for the rows to verify.
        plan: in force for this step.
        tiers: each request's tier.
        caps: drafted tokens that its tier allows.
        room: tokens that it may still emit.
        prompt_lens: tokens of its prompt.
        group_step: what all attention groups run in this step; None where there is one.
        grammar_barrier: SGLang's, passed on where grammars are advanced.
        on_publish: told the new lengths as soon as they are known; SGLang's next step waits for it.
    """

    batch: Any
    window: Any
    plan: EnginePlan
    tiers: Tensor
    caps: Tensor
    room: Tensor
    prompt_lens: Tensor
    group_step: GroupStep | None = None
    grammar_barrier: Any = None
    on_publish: Callable[[Tensor], None] | None = None

    @property
    def rung(self) -> Rung:
        """The rung that runs: the plan's, or a lower one where another group's plan says so."""
        return self.plan.rung if self.group_step is None else self.group_step.rung
