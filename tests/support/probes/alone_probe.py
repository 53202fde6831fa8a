"""Answers of a rank that drafts from contexts alone, on its rungs, and what its lookup has counted.

Run as a program, once for each rank: `python -m support.probes.alone_probe MODEL OUT RANK RANKS PORT`.
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.serving.bench.tiers.stepped import started
from sparktier.serving.engine.stepping import Place, SteppedEngine
from support.generation import Tokens, random_prompts
from support.stepped_engine import stepped_settings

TOKENS = 48
# By arm, the rungs that steps are on in turn.
ARMS = {
    "off": [Rung.OFF],
    "chain": [Rung.CHAIN],
    "short": [Rung.CHAIN_SHORT],
    "mixed": [Rung.OFF, Rung.CHAIN_SHORT, Rung.CHAIN],
}
# By request; the first of these is greedy.
SAMPLING: Sequence[dict[str, Any]] = (
    {},
    {"temperature": 0.9, "top_p": 0.9},
    {"frequency_penalty": 1.2},
    {"temperature": 1.0, "top_k": 20, "presence_penalty": 0.5},
    # Says few tokens, again and again.
    {"temperature": 0.5, "logit_bias": {"100": 12.0, "101": 12.0}},
)


def prompts() -> list[Tokens]:
    """Return prompts that say everything twice, and others."""
    once = random_prompts(8, seed=31, longest=60)
    return [prompt * 2 if number % 3 else prompt for number, prompt in enumerate(once)]


def answers(engine: SteppedEngine, arm: str) -> dict[str, Any]:
    """Answer all prompts on the rungs of `arm`; some requests are ended on the way, whose slots others get."""
    rng = random.Random(0)
    found: dict[str, Any] = {}
    rounds = tokens = 0

    def ran(batch: Any, result: Any) -> None:
        nonlocal rounds, tokens
        found.update({request.rid: request for request in batch.reqs})
        if result.accept_lens is not None:
            rounds, tokens = rounds + len(batch.reqs), tokens + int(result.accept_lens.sum())

    def add(name: str, new_tokens: int) -> None:
        for number, prompt in enumerate(prompts()):
            sampling = SAMPLING[number % len(SAMPLING)]
            engine.add(
                f"{name}-{number}", prompt, new_tokens=new_tokens, cache_key=arm, sampling_seed=number, **sampling
            )

    add("ended", 4 * TOKENS)
    for _ in range(20):
        engine.worker.set_plan(EnginePlan(rung=rng.choice(ARMS[arm])))
        engine.step(ran)
    engine.abort()
    add("whole", TOKENS)
    while engine.step(ran):
        engine.worker.set_plan(EnginePlan(rung=rng.choice(ARMS[arm])))
    whole = [list(found[f"whole-{number}"].output_ids)[:TOKENS] for number in range(len(prompts()))]
    return {"tokens": whole, "length": tokens / rounds}


def main() -> None:
    """Write what the command line asks for."""
    model, out, rank, ranks, port = sys.argv[1:]
    torch.set_num_threads(1)
    place = Place(int(rank), int(ranks), int(port))
    settings = stepped_settings(Path(model), {"method": "ngram"}, chunk_tokens=64, ranks=place.ranks)
    engine = started(settings, place)
    arms = {arm: answers(engine, arm) for arm in ARMS}
    Path(out).write_text(json.dumps({"arms": arms, "counts": engine.worker.lookup.counts.tolist()}))


if __name__ == "__main__":
    main()
