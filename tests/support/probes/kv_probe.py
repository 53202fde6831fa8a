"""Records what target and draft hold of requests in mid-run, and again after a fresh prefill of the same tokens.

Run as a program, once for each rank: `python -m support.probes.kv_probe MODEL DRAFT OUT RANK RANKS PORT [BROKEN...]`.
BROKEN names parts of the worker to leave out, each in a run of its own after a whole one, so that a test can see
whether it would be noticed; AS_ON_GPU leaves nothing out and steps as ranks on GPUs do.
"""

import contextlib
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from sparktier.serving.engine.speculation.deferred_injection import MOST_STEPS
from sparktier.serving.engine.stepping import Place, SteppedEngine
from support.generation import random_prompts
from support.launches.as_on_gpu import as_on_gpu
from support.probes.canary_probe import watched
from support.stepped_engine import stepped

WHOLE, AS_ON_GPU = "whole", "as on a GPU"
NEW_TOKENS = 48
# A snapshot at every third step that drafts.
_EVERY = 3
# Longer than features are deferred.
_OFF_STEPS = MOST_STEPS + 3


@dataclass(frozen=True)
class Snapshot:
    """One request between two steps: its committed tokens, the next one, and what is held of them.

    target and draft [layers, 2, n, heads, head_dim]: keys and values; logits [block, V]: of the next draft block.
    """

    request: str
    tokens: tuple[int, ...]
    anchor: int
    target: Tensor
    draft: Tensor
    logits: Tensor


Pairs = list[tuple[Snapshot, Snapshot]]


def read_pairs(file: Path) -> dict[str, Pairs]:
    """Return the snapshots in `file`, each in mid-run and of a fresh prefill, by the part left out or WHOLE."""
    return {run: [(Snapshot(**mid), Snapshot(**new)) for mid, new in pairs] for run, pairs in torch.load(file).items()}


class Probe:
    """Takes snapshots just before the draft block's logits are used, while nothing of the step is written yet."""

    def __init__(self, engine: SteppedEngine) -> None:
        self._engine = engine
        self.start(every=_EVERY)
        step = engine.worker.decode_step.drafter
        self._forward, step._forward = step._forward, self._noting_batch
        self._after_layers, step._after_layers = step._after_layers, self._taking_snapshots

    def start(self, *, every: int) -> None:
        """Take a snapshot at each `every`-th step from now on, and forget those before."""
        self.taken: list[Snapshot] = []
        self._every, self._steps = every, 0

    def _noting_batch(self, batch: Any, window: Any, **graph: Any) -> Any:
        self._batch = batch
        return self._forward(batch, window, **graph)

    def _taking_snapshots(self, hidden: Tensor, size: int) -> tuple[Tensor, Tensor]:
        base, of_block = self._after_layers(hidden, size)
        self._steps += 1
        if self._steps % self._every == 0:
            self.taken += [self._snapshot(self._batch, place, base[place]) for place in range(size)]
        return base, of_block

    def _snapshot(self, batch: Any, place: int, logits: Tensor) -> Snapshot:
        request, committed = batch.reqs[place], int(batch.seq_lens[place])
        tokens = [*request.origin_input_ids, *request.output_ids]
        worker = self._engine.worker
        runner = worker.model_runner
        slots = runner.req_to_token_pool.req_to_token[batch.req_pool_indices[place], :committed].long()
        return Snapshot(
            request=request.rid,
            tokens=tuple(tokens[:committed]),
            anchor=tokens[committed],
            target=_held(runner.token_to_kv_pool, slots),
            draft=_held(worker._kv_injector.draft_model_runner.token_to_kv_pool, slots),
            logits=logits.clone(),
        )


def _held(pool: Any, slots: Tensor) -> Tensor:
    layers = zip(pool.k_buffer, pool.v_buffer, strict=True)
    return torch.stack([torch.stack([keys[slots], values[slots]]) for keys, values in layers])


def mid_run(engine: SteppedEngine, probe: Probe, run: str) -> list[Snapshot]:
    """Decode greedy and sampled requests of all lengths on changing rungs, some after another's cached tokens.

    Runs share no cached tokens.
    """
    rng = random.Random(0)
    probe.start(every=_EVERY)
    prompts = random_prompts(6, seed=1, longest=200)
    for number, prompt in enumerate(prompts):
        sampling = {"temperature": 0.8, "sampling_seed": number} if number % 3 == 2 else {}
        engine.add(f"first-{number}", prompt, new_tokens=NEW_TOKENS, cache_key=run, **sampling)
    _wander(engine, rng)
    # What a conversation's next turn finds in the cache was partly written by decode steps.
    finished = {snapshot.request: (*snapshot.tokens, snapshot.anchor) for snapshot in probe.taken}
    for request, tokens in list(finished.items())[:3]:
        engine.add(f"next-{request}", [*tokens, 7, 8, 9], new_tokens=NEW_TOKENS // 2, cache_key=run)
    _wander(engine, rng)
    return probe.taken


def _wander(engine: SteppedEngine, rng: random.Random) -> None:
    """Step to the end, mostly on another rung each time; some spells without drafts are longer."""
    from sparktier.configs.plan_keys import EnginePlan, Rung

    steps_left = 0
    while engine.step():
        steps_left -= 1
        if steps_left <= 0:
            rung = rng.choice(list(Rung))
            steps_left = rng.choice((1, _OFF_STEPS)) if rung == Rung.OFF else 1
            engine.worker.set_plan(EnginePlan(rung=rung))


def fresh(engine: SteppedEngine, probe: Probe, run: str, snapshots: list[Snapshot]) -> list[Snapshot]:
    """Prefill the tokens of each snapshot anew, and take another at the first step after it."""
    from sparktier.configs.plan_keys import EnginePlan, Rung

    engine.worker.set_plan(EnginePlan(rung=Rung.CHAIN))
    probe.start(every=1)
    again = []
    for number, snapshot in enumerate(snapshots):
        engine.add(f"fresh-{number}", snapshot.tokens, new_tokens=2, cache_key=f"{run}-{number}")
        engine.run()
        again.append(probe.taken[-1])
    return again


def left_out(worker: Any, part: str) -> contextlib.AbstractContextManager[object]:
    """The worker skips a part of what it does with rows that were accepted, until the context ends."""
    if part == AS_ON_GPU:
        return as_on_gpu(worker)
    step = worker.decode_step
    owner, skipped = {
        "injection": (type(step.features), "inject"),
        "compaction": (type(step), "_compact"),
        "flush": (type(step.features), "flush"),
    }[part]
    return mock.patch.object(owner, skipped, return_value=None)


def main() -> None:
    """Write the pairs of snapshots that the command line asks for."""
    model, draft, out, rank, ranks, port, *broken = sys.argv[1:]
    torch.set_num_threads(1)
    place = Place(int(rank), int(ranks), int(port))
    engine = stepped(Path(model), Path(draft), chunk_tokens=64, tree_rows=10, place=place, prompt_lookup=True)
    probe, found = Probe(engine), {}
    for run in (WHOLE, *broken):
        with left_out(engine.worker, run) if run != WHOLE else contextlib.nullcontext():
            snapshots = mid_run(engine, probe, run)
            again = fresh(engine, probe, run, snapshots)
        found[run] = [(vars(mid), vars(new)) for mid, new in zip(snapshots, again, strict=True)]
    torch.save(found, out)
    if "compaction" in broken:
        canary = watched(engine, left_out(engine.worker, "compaction"))
        Path(f"{out}.canary.json").write_text(json.dumps(canary))


if __name__ == "__main__":
    main()
