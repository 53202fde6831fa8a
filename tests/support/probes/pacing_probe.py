"""Decodes requests of several tiers under random plans, with the verify planner's inputs and rows of every step.

Run as a program, once for each rank:
`python -m support.probes.pacing_probe MODEL DRAFT RULE BATCHES OUT RANK RANKS PORT`.
"""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparktier.cluster.arrays import Floats, Ints
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import Offers
from sparktier.configs.plan_keys import EnginePlan, Rung, TierTerms
from sparktier.configs.step_times import reference_table
from sparktier.serving.engine.plan.step_inputs import StepInputs
from sparktier.serving.engine.speculation.decode_step import DecodeStep
from sparktier.serving.engine.speculation.pacing import Pace, Pacer
from sparktier.serving.engine.speculation.step_result import CountedResult
from sparktier.serving.engine.stepping import Place, SteppedEngine
from support.generation import random_prompts
from support.probes.twin_run import TwinRun, twin_runs
from support.stepped_engine import stepped

TABLE = "avx2"
REQUESTS_AT_ONCE, NEW_TOKENS = 8, 40
# Steps under one plan.
_PLAN_STEPS = 3
_TIERS = 4


@dataclass
class PacedRecord:
    """One paced step on one rank: what the planner was given, and the rows [requests] that were verified."""

    lagged: Offers
    live: Floats
    total: int
    rung: int
    row_budget: int
    context_tokens: int
    takes_live: bool
    rows: Ints | None = None


@dataclass(frozen=True)
class PacedRun:
    """All of one rank: its paced steps, and each request's tokens under random plans and on rung `off`.

    stats: what it counted under plans, by tier; budgets: of each step, by its own clock and as agreed. Both where the
    probe tells. twins: runs of the engine in virtual time, each beside the simulated engine's on the text that it met.
    """

    steps: Sequence[PacedRecord]
    paced: dict[str, list[int]]
    off: dict[str, list[int]]
    twins: Sequence[TwinRun] = ()
    stats: dict[int, dict[str, Any]] | None = None
    budgets: list[tuple[int, int]] | None = None


def read_run(file: Path) -> PacedRun:
    """Return what a rank has written to `file`."""
    content = torch.load(file, weights_only=False)
    steps = [PacedRecord(**{**step, "lagged": Offers(**step["lagged"])}) for step in content["steps"]]
    return PacedRun(**{**content, "steps": steps})


class RecordingPacer(Pacer):
    """The product's pacer, which also keeps what it was asked."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(StepTimeModel(reference_table(TABLE)), **kwargs)
        self.steps: list[PacedRecord] = []

    def begin(self, requests: Sequence[Any], plan: EnginePlan, **bounds: Any) -> Pace:
        """Plan a step, and open its record; a request's first step starts its clock."""
        for request in requests:
            if not hasattr(request, "sparktier_first_token_s"):
                request.sparktier_first_token_s = self._clock()
        pace = super().begin(requests, plan, **bounds)
        step = pace.step
        survival = step.offers.survival
        record = PacedRecord(step.offers, survival, step.total, pace.rung, plan.rows, pace.context_tokens, False)
        self.steps.append(record)
        return pace

    def share(self, pace: Pace, survival: Floats, *, drawn: bool) -> Ints:
        """Share out a step's rows, and note by what."""
        self.steps[-1].live, self.steps[-1].takes_live = survival, self.live and not drawn
        return super().share(pace, survival, drawn=drawn)


class _RecordedStep(DecodeStep):
    """The product's step, whose record of rows is kept too."""

    def run(self, inputs: StepInputs) -> CountedResult:
        """Decode, and note the rows that were verified."""
        result = super().run(inputs)
        assert result.record is not None
        if result.record.expected is not None:
            assert isinstance(self.pacer, RecordingPacer)
            self.pacer.steps[-1].rows = np.array(result.record.row_counts.tolist())
        return result


def random_plans(*, highest: Rung = Rung.TREE, seed: int = 0) -> Iterator[EnginePlan]:
    """Yield plans of random rungs to `highest`, row budgets, promises, weights and caps; most of them draft."""
    rng = random.Random(seed)
    rungs = (Rung.OFF, Rung.CHAIN_SHORT, Rung.CHAIN, Rung.CHAIN, Rung.TREE, Rung.TREE, Rung.TREE)
    for version in count(1):
        tiers = {
            tier: TierTerms(
                promise_tok_s=rng.choice((None, 0.5, 20.0, 1000.0)),
                weight=rng.choice((0.1, 1.0, 1.0, 7.0)),
                cap_tokens=rng.choice((None, None, None, 0, 1, 3)),
            )
            for tier in range(_TIERS)
        }
        rung = min(rng.choice(rungs), highest)
        yield EnginePlan(epoch=1, version=version, rung=rung, rows=rng.choice((0, 0, 8, 30)), tiers=tiers)


def decoded(
    engine: SteppedEngine, label: str, batches: int, change: Callable[[], None], *, sampled: bool = True
) -> dict[str, list[int]]:
    """Decode `batches` of requests and return their tokens by name; `change` is called every few steps.

    With `sampled` every third request is sampled, but in every third batch, the others are greedy.
    """
    prompts = random_prompts(REQUESTS_AT_ONCE, seed=2, longest=60)
    found: dict[str, Any] = {}
    for batch in range(batches):
        for number, prompt in enumerate(prompts):
            seed = {"temperature": 0.9, "sampling_seed": 100 * batch + number}
            sampling = seed if sampled and batch % 3 > 0 and number % 3 == 2 else {}
            engine.add(
                f"{label}-{batch}-{number}",
                prompt[batch % 2 :],
                new_tokens=NEW_TOKENS + 4 * number,
                cache_key=label,
                custom_params={"sparktier_tier": number % _TIERS},
                **sampling,
            )
        change()
        for step in count(1):
            if not engine.step():
                break
            found |= {request.rid.removeprefix(f"{label}-"): request for request in engine.scheduler.last_batch.reqs}
            if step % _PLAN_STEPS == 0:
                change()
    # SGLang's own worker may go past a request's end, and SGLang cuts the answer.
    return {name: list(one.output_ids)[: one.sampling_params.max_new_tokens] for name, one in found.items()}


def main() -> None:
    """Write what the command line asks for."""
    model, draft, rule, batches, out, rank, ranks, port = sys.argv[1:]
    torch.set_num_threads(1)
    place = Place(int(rank), int(ranks), int(port))
    engine = stepped(Path(model), Path(draft), chunk_tokens=64, tree_rows=10, place=place, accept_rule=rule)
    worker = engine.worker
    # Each rank's clock says another time: only rank 0's may count.
    ticks = count()
    pacer = RecordingPacer(live=True, clock=lambda: (1.0 + float(rank)) * next(ticks))
    plain = worker.decode_step
    worker.decode_step = _RecordedStep(**{**vars(plain), "pacer": pacer})
    plans, rng = random_plans(), random.Random(1)

    def next_plan() -> None:
        worker.set_plan(next(plans))
        pacer.live = rng.random() < 0.5

    paced = decoded(engine, "paced", int(batches), next_plan)
    off = decoded(engine, "off", int(batches), lambda: worker.set_plan(EnginePlan(rung=Rung.OFF)))
    records = [{**vars(step), "lagged": asdict(step.lagged)} for step in pacer.steps]
    # Drawn drafts (the ratio rule) have no text that says what comes true; other ranks' steps would be the same.
    worker.decode_step = plain
    twins = twin_runs(engine, tree_rows=10, block_tokens=5) if rule == "match" and place.ranks == 1 else []
    torch.save({"steps": records, "paced": paced, "off": off, "twins": twins}, out)


if __name__ == "__main__":
    main()
