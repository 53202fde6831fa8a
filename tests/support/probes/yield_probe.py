"""Decodes requests of a tier that yields, undisturbed and while promised ones take their seats.

Run as a program: `python -m support.probes.yield_probe MODEL DRAFT OUT RANK RANKS PORT`.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sparktier.configs.plan_keys import PROMISED_PRIORITY, YIELDING_PRIORITY, EnginePlan, Rung, TierTerms, keys_of
from sparktier.serving.engine.stepping import Place, SteppedEngine
from support.generation import random_prompts
from support.stepped_engine import stepped

SEATS, YIELDING, PROMISED = 4, 4, 3
NEW_TOKENS = 64
# Steps before a promised request comes, and between two.
_STEPS = 6
TIERS = {0: {"name": "batch", "default": True, "yields": True}, 1: {"name": "strict", "promise_tok_s": 1.0}}


@dataclass(frozen=True)
class YieldRun:
    """What each request said by whether it was disturbed, on each rung: its prompt, tokens and retractions.

    `ran` are the most requests that ran at once while seats were scarce.
    """

    prompts: dict[str, list[int]]
    undisturbed: dict[str, list[int]]
    disturbed: dict[str, list[int]]
    retractions: dict[str, int]
    ran: int


def read_runs(file: Path) -> dict[int, YieldRun]:
    """Return what a rank has written to `file`, by rung."""
    return {rung: YieldRun(**found) for rung, found in torch.load(file, weights_only=False).items()}


def _put(engine: SteppedEngine, version: int, rung: Rung, seats: int | None) -> None:
    from sglang.srt.managers.io_struct import SetInternalStateReq

    terms = {tier: TierTerms(each.get("promise_tok_s")) for tier, each in TIERS.items()}  # type: ignore[arg-type]
    plan = EnginePlan(epoch=2, version=version, rung=rung, seats=seats, tiers=terms)
    taken = engine.scheduler.internal_state.set_internal_state(SetInternalStateReq(server_args=keys_of(plan)))
    assert taken.updated


def _decoded(engine: SteppedEngine, prompts: dict[str, list[int]], key: str) -> tuple[dict[str, Any], int]:
    """Decode all, and return SGLang's requests and how many ran at once at most.

    Those whose names begin with `p` come one by one, when the others are under way.
    """
    found: dict[str, Any] = {}
    ran = 0
    for number, (name, prompt) in enumerate(prompts.items()):
        promised = name.startswith("p")
        for _ in range(_STEPS if promised else 0):
            engine.step()
            ran = max(ran, len(engine.scheduler.running_batch.reqs))
        sampled = {} if number % 2 else {"temperature": 1.0, "sampling_seed": number}
        engine.add(
            name,
            prompt,
            new_tokens=NEW_TOKENS // 2 if promised else NEW_TOKENS,
            cache_key=f"{key}{name}",
            custom_params={"sparktier_tier": int(promised)},
            **sampled,
        )
        found[name] = next(each for each in engine.scheduler.waiting_queue if each.rid == name)
        found[name].priority = PROMISED_PRIORITY if promised else YIELDING_PRIORITY
    while engine.step():
        ran = max(ran, len(engine.scheduler.running_batch.reqs))
    return found, ran


def main() -> None:
    """Decode, and write what came of it."""
    model, draft, out = map(Path, sys.argv[1:4])
    place = Place(*map(int, sys.argv[4:7]))
    engine = stepped(model, draft, chunk_tokens=64, tree_rows=12, place=place, tiers=TIERS)
    drawn = random_prompts(YIELDING + PROMISED, seed=3)
    names = [f"y{place}" for place in range(YIELDING)] + [f"p{place}" for place in range(PROMISED)]
    prompts = dict(zip(names, drawn, strict=True))
    runs, version = {}, 0
    for rung in (Rung.OFF, Rung.CHAIN, Rung.TREE):
        version += 2
        _put(engine, version, rung, None)
        calm, _ = _decoded(engine, prompts, f"calm{rung}")
        assert not any(request.retraction_count for request in calm.values())
        _put(engine, version + 1, rung, SEATS)
        found, ran = _decoded(engine, prompts, f"full{rung}")
        runs[int(rung)] = asdict(
            YieldRun(
                prompts,
                {name: list(request.output_ids) for name, request in calm.items()},
                {name: list(request.output_ids) for name, request in found.items()},
                {name: request.retraction_count for name, request in found.items()},
                ran,
            )
        )
    torch.save(runs, out)


if __name__ == "__main__":
    main()
