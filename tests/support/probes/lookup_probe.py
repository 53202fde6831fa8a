"""Counts the rounds that the demo model's answers take with prompt lookup and without, at equal rows.

Run as a program: `python -m support.probes.lookup_probe PROMPTS TOKENS OUT PORT`, from the folder `tests`: so many
ordinary prompts beside those to be copied, answers of up to TOKENS. OUT gets a JSON of the answers of each arm.
"""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.drafter.data.prompts import of_split
from sparktier.drafter.demo.location import demo_draft
from sparktier.drafter.demo.prompt_making import make_prompts
from sparktier.serving.demo_model import ensure_demo_model
from sparktier.serving.engine.speculation.draft_step import DraftStep
from sparktier.serving.engine.stepping import Place, SteppedEngine
from support.inputs.copied_prompts import copied_prompts
from support.stepped_engine import stepped

SEED, USERS, TREE_ROWS = 20261128, 8, 12
# Copied prompts, and others that drafters of the demo never learnt from.
COPIED, ORDINARY = "copied", "ordinary"


def prompts_of(ordinary: int) -> list[tuple[str, str]]:
    """Both kinds, mixed: (kind, prompt)."""
    others = [prompt.turns[0] for prompt in of_split(make_prompts(20_000, seed=SEED), "evaluate")]
    mixed = [(COPIED, prompt) for prompt in copied_prompts()] + [(ORDINARY, prompt) for prompt in others[:ordinary]]
    random.Random(SEED).shuffle(mixed)
    return mixed


def answers(
    engine: SteppedEngine, prompts: Sequence[tuple[str, str]], *, tokens: int, arm: str
) -> list[dict[str, Any]]:
    """Answer all prompts greedily; each with its tokens, and the decode rounds that it took."""
    tokenizer = engine.scheduler.tokenizer
    found: dict[str, dict[str, Any]] = {}
    for number, (kind, prompt) in enumerate(prompts):
        turns = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        name = f"{arm}-{number}"
        engine.add(name, ids, new_tokens=tokens, cache_key=name, ignore_eos=False)
        found[name] = {"prompt": number, "kind": kind, "rounds": 0, "tokens": []}
    requests: dict[str, Any] = {}

    def ran(batch: Any, result: Any) -> None:
        requests.update((request.rid, request) for request in batch.reqs)
        if result.accept_lens is not None:
            for request in batch.reqs:
                found[request.rid]["rounds"] += 1

    while engine.step(ran):
        pass
    for name, request in requests.items():
        found[name]["tokens"] = list(request.output_ids)
    return list(found.values())


def without_lookup(engine: SteppedEngine) -> None:
    """Draft with the model alone from now on."""
    worker = engine.worker
    options = worker.options.model_copy(update={"prompt_lookup": False})
    drafter = DraftStep(worker, worker._edges, needs_trees=True)
    worker.decode_step = replace(worker.decode_step, options=options, lookup=None, drafter=drafter)


def main() -> None:
    """Measure as the command line asks."""
    ordinary, tokens, out, port = sys.argv[1:]
    prompts = prompts_of(int(ordinary))
    engine = stepped(
        ensure_demo_model(),
        demo_draft(),
        chunk_tokens=1024,
        tree_rows=TREE_ROWS,
        place=Place(0, 1, int(port)),
        users=USERS,
        prompt_lookup=True,
    )
    arms = {}
    for rung in (Rung.TREE, Rung.CHAIN):
        engine.worker.set_plan(EnginePlan(rung=rung))
        arms[f"{rung.name.lower()} with lookup"] = answers(engine, prompts, tokens=int(tokens), arm=f"with-{rung}")
    counts = engine.worker.lookup.counts.tolist()
    without_lookup(engine)
    for rung in (Rung.TREE, Rung.CHAIN):
        engine.worker.set_plan(EnginePlan(rung=rung))
        arms[f"{rung.name.lower()} without"] = answers(engine, prompts, tokens=int(tokens), arm=f"without-{rung}")
    Path(out).write_text(json.dumps({"arms": arms, "counts": counts}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
