"""Decodes answers of strict and lenient users together, with weights and without, and counts what each tier accepts.

Run as a program: `python -m support.probes.tier_probe ANSWERS OUT PORT`. It decodes the demo model with its drafter.
The planner's times are the committed AVX2 table: the speed of this machine decides nothing.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import PaceRules
from sparktier.configs.plan_keys import EnginePlan, Rung, TierTerms
from sparktier.configs.step_times import reference_table
from sparktier.drafter.data.prompts import of_split
from sparktier.drafter.demo.location import demo_draft
from sparktier.drafter.demo.prompt_making import make_prompts
from sparktier.serving.demo_model import ensure_demo_model
from sparktier.serving.engine.speculation.pacing import Pacer
from sparktier.serving.engine.stepping import Place, SteppedEngine
from support.stepped_engine import stepped

LENIENT, STRICT = 0, 1
USERS, STRICT_USERS = 8, 2
_NEW_TOKENS = 64
_HELD_OUT_SEED = 20261128
# No plan can keep it: strict requests weigh as much as they may from their second token on.
_PROMISE_TOK_S = 10_000.0


def _answers(engine: SteppedEngine, prompts: Sequence[Sequence[int]], label: str) -> dict[int, float]:
    """Return the tokens of a step of each tier's user, while all users run."""
    rounds: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    step = engine.worker.decode_step
    stock = type(step).run

    def run(inputs: Any) -> Any:
        result = stock(step, inputs)
        if len(inputs.batch.reqs) == USERS:
            for tier, accepted in zip(inputs.tiers.tolist(), result.accept_lens.tolist(), strict=True):
                rounds[tier] += 1
                tokens[tier] += accepted
        return result

    object.__setattr__(step, "run", run)
    for first in range(0, len(prompts), USERS):
        for number, prompt in enumerate(prompts[first : first + USERS]):
            tier = STRICT if number % (USERS // STRICT_USERS) == 0 else LENIENT
            engine.add(
                f"{label}-{first + number}",
                prompt,
                new_tokens=_NEW_TOKENS,
                cache_key=f"{label}-{first + number}",
                custom_params={"sparktier_tier": tier},
            )
        while engine.step():
            # What the observer notes in a rank.
            for request in engine.scheduler.last_batch.reqs:
                request.__dict__.setdefault("sparktier_first_token_s", 0.0)
    return {tier: tokens[tier] / rounds[tier] for tier in (LENIENT, STRICT)}


def main() -> None:
    """Write tokens of a step by tier, under weights and without."""
    answers, out = int(sys.argv[1]), Path(sys.argv[2])
    engine = stepped(
        ensure_demo_model(), demo_draft(), chunk_tokens=256, tree_rows=12, place=Place(0, 1, int(sys.argv[3]))
    )
    tiers = {LENIENT: TierTerms(), STRICT: TierTerms(promise_tok_s=_PROMISE_TOK_S)}
    engine.worker.set_plan(EnginePlan(epoch=1, version=1, rung=Rung.TREE, tiers=tiers))
    tokenizer = engine.scheduler.tokenizer
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.turns[0]}], add_generation_prompt=True, return_dict=False
        )
        for prompt in of_split(make_prompts(100 * answers, seed=_HELD_OUT_SEED), "evaluate")[:answers]
    ]
    found = {}
    plain = engine.worker.decode_step
    for label, rules in (("weights", PaceRules()), ("blind", PaceRules(gain=0.0))):
        pacer = Pacer(StepTimeModel(reference_table("avx2")), live=True, rules=rules, clock=lambda: 1.0)
        engine.worker.decode_step = replace(plain, pacer=pacer)
        found[label] = _answers(engine, prompts, label)
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
