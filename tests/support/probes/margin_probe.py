"""Records margins of tokens that a model emitted under speculation: what the canary sees while nothing is wrong.

Run as a program: `python -m support.probes.margin_probe demo|tiny DTYPE TOKENS OUT PORT [WRONG_FRAC | compaction]`. It
writes arrays `margins` and `answer` (which answer each is of) to OUT. `tiny` is the MoE of random weights that tests
decode, with drafts of its bigrams. WRONG_FRAC is the share of rows whose draft is accepted although the target chose
another; `compaction` leaves accepted rows where they were verified.
"""

import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparktier.configs.plan_keys import EnginePlan, Rung
from sparktier.drafter.demo.location import demo_draft
from sparktier.drafter.demo.prompt_making import make_prompts
from sparktier.serving.demo_model import ensure_demo_model
from sparktier.serving.engine.canary.margins import Choice
from sparktier.serving.engine.canary.scoring import Score
from sparktier.serving.engine.sampling.seeds import seed_of
from sparktier.serving.engine.speculation import accept_step
from sparktier.serving.engine.stepping import Place, SteppedEngine
from support.generation import random_prompts
from support.oracles.oracle_draft import make_oracle_draft
from support.stepped_engine import stepped
from support.tiny_moe import make_tiny_moe

USERS = 16
NEW_TOKENS = 192
_SEED = 20261128
# Half the answers are greedy.
SAMPLING: Sequence[dict[str, float]] = (
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {},
    {"temperature": 1.0},
    {},
    {"temperature": 0.8, "top_k": 40},
    {},
    {"temperature": 1.0, "min_p": 0.05},
)
RUNGS = (Rung.CHAIN_SHORT, Rung.TREE, Rung.CHAIN_SHORT, Rung.CHAIN)
WRONG_NATS = 0.5


def chats(tokenizer: Any) -> list[list[int]]:
    """Prompts for the demo model."""
    turns = [[{"role": "user", "content": prompt.turns[0]}] for prompt in make_prompts(20_000, seed=_SEED)]
    return [tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=False) for each in turns]


def answered(engine: SteppedEngine, prompts: Sequence[Sequence[int]]) -> Iterator[list[Any]]:
    """Yield SGLang's requests of answered prompts, some at a time."""
    for round_number in range(len(prompts) // USERS):
        engine.worker.set_plan(EnginePlan(rung=RUNGS[round_number % len(RUNGS)]))
        for number, tokens in enumerate(prompts[round_number * USERS :][:USERS]):
            name = f"{round_number}-{number}"
            engine.add(name, tokens, new_tokens=NEW_TOKENS, cache_key=name, **SAMPLING[number % len(SAMPLING)])
        yield _run(engine)


def _run(engine: SteppedEngine) -> list[Any]:
    found = {}
    while engine.step():
        found |= {request.rid: request for request in engine.scheduler.last_batch.reqs}
    return list(found.values())


def scored(engine: SteppedEngine, requests: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the margins of the answer to each of `requests`."""
    scorer, scores = engine.worker.scorer, [_score(number, request) for number, request in enumerate(requests)]
    for score in scores:
        scorer.begin(score, engine.scheduler)
    engine.run()
    for score in scores:
        margins = scorer.ended(score.request_id)
        assert margins is not None
        yield margins


def _score(number: int, request: Any) -> Score:
    params = request.sampling_params
    choice = Choice(
        params.temperature, params.top_k, params.top_p, params.min_p, seed_of(request.rid, params.sampling_seed)
    )
    return Score(number, (*request.origin_input_ids, *request.output_ids), len(request.origin_input_ids), choice)


def plant_wrong_tokens(wrong_frac: float) -> None:
    """Have the match rule take the draft's likeliest child now and then, where the target has another choice.

    So is each that is at least `WRONG_NATS` behind the target's best, by the verify pass's own logits.
    """
    stock, rng = accept_step.TargetDistribution.choose, random.Random(_SEED)

    def choose(self: Any, requests: Tensor, rows: Tensor) -> Tensor:
        chosen = stock(self, requests, rows)
        logits = self._adjusted(requests, rows)
        tree, levels = self._tree, torch.arange(self._tree.tokens.shape[1])
        for place, (request, row) in enumerate(zip(requests.tolist(), rows.tolist(), strict=True)):
            children = tree.tokens[request][(tree.parents[request] == row) & (levels < tree.row_counts[request])]
            wrong = [token for token in children.tolist() if token != int(chosen[place])]
            if wrong and rng.random() < wrong_frac:
                behind = float(logits[place].max() - logits[place, wrong[0]])
                if behind >= WRONG_NATS:
                    chosen[place] = wrong[0]
        return chosen

    accept_step.TargetDistribution.choose = choose  # type: ignore[method-assign]


def tiny() -> tuple[Path, Path]:
    """Write a tiny MoE and a draft of its bigrams and return where they are."""
    folder = Path(tempfile.mkdtemp())
    target = make_tiny_moe(folder / "target", context_gain=0.2)
    return target, make_oracle_draft(folder / "draft", target, block_tokens=5)


def main() -> None:
    """Record as the command line asks."""
    name, dtype, tokens, out, port, *planted = sys.argv[1:]
    place = Place(0, 1, int(port))
    target, draft = (ensure_demo_model(), demo_draft()) if name == "demo" else tiny()
    engine = stepped(target, draft, chunk_tokens=1024, tree_rows=12, place=place, dtype=dtype, users=USERS)
    prompts = chats(engine.scheduler.tokenizer) if name == "demo" else random_prompts(20_000, seed=_SEED)
    if planted == ["compaction"]:
        type(engine.worker.decode_step)._compact = lambda *_: None
    elif planted:
        plant_wrong_tokens(float(planted[0]))
    margins: list[np.ndarray[Any, Any]] = []
    answers: list[np.ndarray[Any, Any]] = []
    count = 0
    for requests in answered(engine, prompts):
        for each in scored(engine, requests):
            found = each.numpy()
            margins.append(found)
            answers.append(np.full(len(found), len(margins), dtype=np.int32))
            count += len(found)
        print(count, sum(int((each > 0.3).sum()) for each in margins), flush=True)  # noqa: T201 - progress
        np.savez_compressed(out, margins=np.concatenate(margins).astype(np.float32), answer=np.concatenate(answers))
        if count >= int(tokens):
            return


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
