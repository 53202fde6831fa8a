"""What a decode step reads: one frozen value that the worker makes for each step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparktier.configs.plan_keys import EnginePlan


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
    grammar_barrier: Any = None
    on_publish: Callable[[Tensor], None] | None = None
