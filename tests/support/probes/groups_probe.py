"""Decodes uneven loads on attention groups under random plans that differ by rank, and notes what each step ran.

Run as a program, once for each rank:
`python -m support.probes.groups_probe MODEL DRAFT RULE ROUNDS OUT RANK RANKS PORT`; the rule `plain` drafts nothing.
"""

import faulthandler
import itertools
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch.utils._python_dispatch import TorchDispatchMode

from sparktier.configs.loading.loader import settings_from
from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.configs.settings.settings import Settings
from sparktier.serving.bench.tiers.stepped import started
from sparktier.serving.engine.plan.group_step import GroupStep, group_step_of
from sparktier.serving.engine.stepping import Place, SteppedEngine
from support.generation import random_prompts
from support.probes.pacing_probe import random_plans

PLAIN = "plain"
NEW_TOKENS = 24
# Requests of each group in a round: all busy, one idle, uneven.
LOADS = ((3, 3), (5, 0), (0, 4), (7, 1), (1, 1), (2, 6))
_PLAN_STEPS = 3
_ABORT_STEP = 6
# A rank that waits so long for the others hangs.
_WATCHDOG_S = 900


@dataclass(frozen=True)
class GroupRecord:
    """One decode step on one rank. own_rung: of the rank's own plan. rows: verified by its requests. passed: rows of
    every group's pass, as SGLang was told. collectives: calls of each kind. agreed: None without drafts.
    """

    own_rung: int
    agreed: GroupStep | None
    rows: Sequence[int]
    passed: Sequence[int]
    collectives: Mapping[str, int]


class Counted(TorchDispatchMode):
    """Counts the collectives of this process, by kind, between two readings."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._calls[func._opname] += 1
        return func(*args, **(kwargs or {}))

    def read(self) -> dict[str, int]:
        """Return the calls since the last reading."""
        calls, self._calls = self._calls, Counter()
        return dict(sorted(calls.items()))


class Groups:
    """One rank, stepped, with a record of each decode step."""

    def __init__(self, engine: SteppedEngine, place: Place) -> None:
        self.engine, self.place = engine, place
        self.steps: list[GroupRecord] = []
        self.retractions = 0
        self._counted = Counted()
        self._passed: list[int] = []
        stock = ForwardBatch.prepare_mlp_sync_batch

        def prepare(batch: Any, runner: Any) -> None:
            stock(batch, runner)
            self._passed = list(batch.global_num_tokens_cpu)

        ForwardBatch.prepare_mlp_sync_batch = prepare

    def step(self) -> bool:
        """Run a step, and note it if it decodes."""
        self._counted.read()
        with self._counted:
            return self.engine.step(self._ran)

    def _ran(self, batch: Any, result: Any) -> None:
        calls = self._counted.read()
        if batch.is_extend_in_batch:
            return
        record = getattr(result, "record", None)
        rows = [] if record is None else record.row_counts.tolist()
        rung = 0 if self.engine.worker is None else int(self.engine.worker.plan.rung)
        self.steps.append(GroupRecord(rung, group_step_of(batch), rows, self._passed, calls))

    def take_plan(self, plan: EnginePlan) -> None:
        """Put `plan` in force; plain decoding has none."""
        if self.engine.worker is not None:
            self.engine.worker.set_plan(plan)


def decoded(groups: Groups, label: str, rounds: int, plans: Iterator[EnginePlan], *, aborts: bool) -> dict[str, Any]:
    """Decode `rounds` of requests and return their tokens by name; with `aborts` some are ended early."""
    rng, prompts = random.Random(5), random_prompts(8, seed=3, longest=60)
    found, ended = {}, set()
    for number in range(rounds):
        doomed = _queue(groups, label, number, prompts, rng)
        groups.take_plan(next(plans))
        for step in itertools.count(1):
            if not groups.step():
                break
            found |= {request.rid: request for request in groups.engine.scheduler.last_batch.reqs}
            if step % _PLAN_STEPS == 0:
                groups.take_plan(next(plans))
            if aborts and step == _ABORT_STEP:
                ended |= doomed
                for name in doomed:
                    groups.engine.scheduler.abort_request(AbortReq(rid=name))
    retracted = sum(request.retraction_count for request in found.values())
    groups.retractions += retracted
    whole = {name: request for name, request in found.items() if name not in ended}
    return {name.removeprefix(f"{label}-"): list(request.output_ids) for name, request in whole.items()}


def _queue(groups: Groups, label: str, number: int, prompts: list[list[int]], rng: random.Random) -> set[str]:
    """Queue the round's requests of this rank's group, and return those that are to end early."""
    doomed = set()
    for group, count in enumerate(LOADS[number % len(LOADS)]):
        for place in range(count):
            name, ends_early = f"{label}-{number}-{group}-{place}", rng.random() < 0.15
            if group != groups.place.rank:
                continue
            seed = {"temperature": 0.9, "sampling_seed": 100 * number + 10 * group + place}
            groups.engine.add(
                name,
                prompts[(place + number) % 8],
                new_tokens=NEW_TOKENS + 3 * place,
                cache_key=label,
                custom_params={"sparktier_tier": place % 4},
                **(seed if place % 2 else {}),
            )
            if ends_early:
                doomed.add(name)
    return doomed


def crowded_settings(model: Path, speculation: Mapping[str, Any], *, groups: int) -> Settings:
    """Settings of as many attention groups as ranks, whose caches hold less than their requests need."""
    return settings_from(
        {
            "model": {"path": str(model), "dtype": "float32", "context_tokens": 256},
            "replicas": {
                "device": "cpu",
                "tensor_parallel": groups,
                "expert_parallel": groups,
                "attention_data_parallel": groups,
                "max_running_requests": 8 * groups,
                "kv_tokens": 384,
                "chunked_prefill_tokens": 64 * groups,
                "sglang_args": {"schedule_conservativeness": 0.05},
            },
            "speculation": dict(speculation),
        }
    )


def main() -> None:
    """Write what the command line asks for."""
    model, draft, rule, rounds, out, rank, ranks, port = sys.argv[1:]
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(_WATCHDOG_S, exit=True)
    place = Place(int(rank), int(ranks), int(port))
    tree = {"method": "tree", "draft_path": draft, "tree_rows": 10, "accept_rule": rule}
    settings = crowded_settings(Path(model), {} if rule == PLAIN else tree, groups=place.ranks)
    groups = Groups(started(settings, place), place)
    # Each rank's plan is another: they reach groups at different times.
    plans = random_plans(seed=place.rank)
    found = {"plans": decoded(groups, "plans", int(rounds), plans, aborts=True)}
    steps = list(groups.steps)
    found["off"] = decoded(groups, "off", int(rounds), itertools.repeat(EnginePlan(rung=Rung.OFF)), aborts=False)
    torch.save({"tokens": found, "steps": [vars(step) for step in steps], "retractions": groups.retractions}, out)


if __name__ == "__main__":
    main()
