"""The recipe of the demo model's drafter: its prompts, and the settings of the run that trains it.

The figures it reached are in the log (docs/log.md).
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import sha256_of
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.prompts import Prompt, distinct, of_split
from sparktier.drafter.demo.open_questions import open_questions
from sparktier.drafter.demo.prompt_making import functions_to_complete, make_prompts
from sparktier.drafter.demo.self_prompts import self_written
from sparktier.drafter.training.train_settings import DraftShape, TrainSettings

# `grade_school_math/data/train.jsonl` of github.com/openai/grade-school-math, MIT.
QUESTIONS_SHA256 = "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"
# Every sixth batch is answered at temperature 1, the others greedily.
SAMPLED_EVERY = 6
LONGEST_PROMPT_TOKENS = 320
BATCH = 64
# How benchmarks ask, DeepSpec's evaluation sets among them.
_ASKED_CODE = "Write a solution to the following problem and make sure that it passes the tests:\n"
_ASKED_SUM = "\nPlease reason step by step, and put your final answer within \\boxed{}."
# The beginnings from which the model writes prompts, and how many tokens it may add.
_OWN_QUESTIONS = ("", 60)
_OWN_PROBLEMS = (_ASKED_CODE + "```python\nfrom typing import List\n\n\ndef ", 180)


@dataclass(frozen=True)
class Scale:
    """The sizes of the recipe: prompts sampled for each family (fewer are kept), answer length, steps.

    `calibrate` prompts are held out from the families that train; no open question trains.
    """

    functions: int = 2400
    everyday: int = 1000
    questions: int = 1800
    own_questions: int = 2400
    own_problems: int = 1000
    calibrate: int = 192
    open_questions: int = 128
    answer_tokens: int = 224
    steps: int = 3600
    held_out: int = 48


@dataclass(frozen=True)
class Families:
    """Prompts by purpose: `made` and `self_written` train the drafter; `calibrate` is held out of all families."""

    made: list[Prompt]
    self_written: list[Prompt]
    calibrate: list[Prompt]


def read_questions(path: Path) -> list[str]:
    """Return the questions of gsm8k's training half.

    Raises:
        ArtifactError: the file is missing, or is not that of gsm8k.
    """
    cure = "Take grade_school_math/data/train.jsonl of github.com/openai/grade-school-math."
    if not path.is_file():
        raise ArtifactError(f"{path}: the questions of gsm8k's training half must be here (found no file). {cure}")
    if sha256_of(path) != QUESTIONS_SHA256:
        raise ArtifactError(f"{path}: must have the digest {QUESTIONS_SHA256[:12]}... (it differs). {cure}")
    return [json.loads(line)["question"] for line in path.read_text(encoding="utf-8").split("\n") if line]


def families(target: LocalTarget, questions: Sequence[str], scale: Scale, done: Callable[[int], None]) -> Families:
    """Make all prompts; `done` gets the number of those that the target wrote."""
    rng = random.Random(1)
    functions = functions_to_complete(_ASKED_CODE)
    everyday = make_prompts(scale.everyday, seed=7)
    asked = [Prompt((text + _ASKED_SUM,)) for text in questions]
    for part in (functions, asked):
        rng.shuffle(part)
    made = distinct([*functions[: scale.functions], *everyday, *asked[: scale.questions]])
    rng.shuffle(made)
    own = distinct(
        prompt
        for seed, (count, (beginning, tokens)) in enumerate(
            ((scale.own_questions, _OWN_QUESTIONS), (scale.own_problems, _OWN_PROBLEMS))
        )
        for prompt in self_written(target, count, beginning, tokens, 0.8, seed, done)
    )
    judged = of_split(distinct([*made, *own]), "calibrate")
    return Families(
        made=of_split(made, "train"),
        self_written=of_split(own, "train"),
        calibrate=[
            *rng.sample(judged, min(scale.calibrate, len(judged))),
            *open_questions(scale.open_questions, seed=1),
        ],
    )


def batches(target: LocalTarget, prompts: Sequence[Prompt]) -> list[list[list[int]]]:
    """Return the encoded prompts in batches of about one length, without the longest."""
    encoded = sorted((target.encode(prompt) for prompt in prompts), key=len)
    short = [ids for ids in encoded if len(ids) <= LONGEST_PROMPT_TOKENS]
    return [short[start : start + BATCH] for start in range(0, len(short), BATCH)]


def shape(mask_token_id: int, heads: int = 8, head_dim: int = 64, intermediate_size: int = 1536) -> DraftShape:
    """Return the drafter: two layers, blocks of five, a Markov table of rank 64."""
    return DraftShape(
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        rms_norm_eps=1e-5,
        rope_theta=100_000.0,
        max_position_embeddings=8192,
        block_size=5,
        mask_token_id=mask_token_id,
        markov_rank=64,
    )


STEP: Mapping[str, Any] = {
    "row_tokens": 512,
    "rows_per_step": 4,
    "anchors_per_row": 40,
    "loss_columns": 6144,
    "learning_rate": 1e-3,
}
"""The settings of one step in the demo's shape; to save time it scores a sample of the vocabulary."""


def course(target: Path, folder: Path, draft: DraftShape, scale: Scale) -> TrainSettings:
    """Return the settings of the run."""
    return TrainSettings(
        target=target,
        run_dir=folder,
        draft=draft,
        steps=scale.steps,
        **STEP,
        held_out_sequences=scale.held_out,
        evaluate_every_steps=200,
        checkpoint_every_steps=200,
    )
