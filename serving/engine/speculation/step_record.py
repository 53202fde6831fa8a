"""What a step tells of itself, on the very result that SGLang hands around: counted with it, or lost with it."""

from dataclasses import dataclass

from sglang.srt.managers.utils import GenerationBatchResult
from torch import Tensor

from sparktier.serving.engine.telemetry.step_phases import Phases


@dataclass(frozen=True)
class StepRecord:
    """One decode step. tiers, row_counts, depths [batch]: of each request, on the device until the step's results are
    read."""

    phases: Phases
    rung: int
    tiers: Tensor
    row_counts: Tensor
    depths: Tensor


@dataclass
class CountedResult(GenerationBatchResult):  # type: ignore[misc]
    """SGLang's result of a decode step, with the record of that step."""

    record: StepRecord | None = None
