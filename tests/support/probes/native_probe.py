"""Decodes under random plans with SGLang's own DSpark worker, whose rows our planner paces.

Run as a program, once for each rank: `python -m support.probes.native_probe MODEL DRAFT BATCHES OUT RANK RANKS PORT`.
SGLang refuses this worker on CPUs, though all of it runs there but a call that only GPUs have; both are lifted here.
"""

import inspect
import random
import sys
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sglang.srt.arg_groups import speculative_hook
from sglang.srt.layers.dp_attention import get_dp_tp_group

from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.configs.settings.settings import Settings
from sparktier.serving.bench.tiers.stepped import started
from sparktier.serving.deployment import resolved
from sparktier.serving.engine.native import planned_verify
from sparktier.serving.engine.speculation.step_result import StepRecord
from sparktier.serving.engine.stepping import Place
from sparktier.serving.engine.telemetry.observer import Observer
from support.probes.pacing_probe import RecordingPacer, decoded, random_plans
from support.stepped_engine import stepped_settings


def runs_on_cpus() -> None:
    """Lift what keeps the worker from CPUs; for good."""
    source = inspect.getsource(speculative_hook._handle_dspark).replace('"xpu")', '"xpu", "cpu")')
    exec(source, {**vars(speculative_hook), "ServerArgs": object}, found := {})
    speculative_hook._handle_dspark = found["_handle_dspark"]
    resolved._require_runnable = lambda *_: None
    torch.Tensor.record_stream = lambda *_: None


def _native(model: Path, draft: Path, *, ranks: int) -> Settings:
    chain = {"method": "chain", "draft_path": str(draft)}
    settings = stepped_settings(model, chain, chunk_tokens=64, ranks=ranks)
    native = settings.speculation.model_copy(update={"method": "dspark_native", "verification": "compact"})
    return settings.model_copy(update={"speculation": native})


def main() -> None:
    """Write what the command line asks for."""
    model, draft, batches, out, rank, ranks, port = sys.argv[1:]
    torch.set_num_threads(1)
    runs_on_cpus()
    place = Place(int(rank), int(ranks), int(port))
    engine = started(_native(Path(model), Path(draft), ranks=place.ranks), place)
    worker = engine.worker
    # Each rank's clock says another time: only rank 0's may count.
    ticks = count()

    def clock() -> float:
        return (1.0 + float(rank)) * next(ticks)

    Observer(engine.scheduler, clock=clock).install()
    pacer = RecordingPacer(live=True, clock=clock)
    worker._verify_planner.bind(worker.slots.tier, pacer=pacer, group=get_dp_tp_group())
    made, agreed, budgets = worker._record, planned_verify.of_first_rank, []

    def record(*facts: Any) -> StepRecord:
        step: StepRecord = made(*facts)
        if step.expected is not None:
            pacer.steps[-1].rows = np.array(step.row_counts.tolist())
        return step

    def of_first_rank(group: Any, own: torch.Tensor) -> torch.Tensor:
        told = agreed(group, own)
        budgets.append((int(own), int(told)))
        return told

    worker._record, planned_verify.of_first_rank = record, of_first_rank  # type: ignore[assignment]
    plans, rng = random_plans(highest=Rung.CHAIN), random.Random(1)

    def next_plan() -> None:
        worker.set_plan(next(plans))
        pacer.live = rng.random() < 0.5

    paced = decoded(engine, "paced", int(batches), next_plan, sampled=False)
    stats = {tier: vars(each) for tier, each in worker.spec_stats.by_tier.items()}
    off = decoded(engine, "off", int(batches), lambda: worker.set_plan(EnginePlan(rung=Rung.OFF)), sampled=False)
    records = [{**vars(step), "lagged": asdict(step.lagged)} for step in pacer.steps]
    torch.save({"steps": records, "paced": paced, "off": off, "stats": stats, "budgets": budgets}, out)


if __name__ == "__main__":
    main()
