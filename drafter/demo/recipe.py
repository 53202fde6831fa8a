"""The recipe of the demo model's drafter: its prompts, and the settings of the run that trains it.

The figures it reached are in the log (docs/log.md).
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
# Every sixth batch that trains is answered at temperature 1, the others greedily.
TRAINING_TEMPERATURES = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
LONGEST_PROMPT_TOKENS = 320
# How benchmarks ask, DeepSpec's evaluation sets among them.
_ASKED_CODE = "Write a solution to the following problem and make sure that it passes the tests:\n"
_ASKED_SUM = "\nPlease reason step by step, and put your final answer within \\boxed{}."
# The beginnings from which the model writes prompts, and how many tokens it may add.
_OWN_QUESTIONS = ("", 60)
# From here on a CPU has time for whole batches of long answers.
_LONG_MINUTES = 30.0
_OWN_PROBLEMS = (_ASKED_CODE + "```python\nfrom typing import List\n\n\ndef ", 180)


@dataclass(frozen=True)
class Scale:
    """The sizes of the recipe: prompts sampled for each family (fewer are kept), answers, steps.

    `calibrate` and `evaluate` prompts are held out from the families that train; no open question trains. With
    `minutes`, sizes are bounds: each stage has a share of that time, and the steps are those that fit.
    """

    functions: int = 2400
    everyday: int = 1000
    questions: int = 1800
    own_questions: int = 2400
    own_problems: int = 1000
    calibrate: int = 192
    open_questions: int = 128
    evaluate: int = 64
    answer_tokens: int = 224
    batch: int = 64
    steps: int = 3600
    held_out: int = 48
    minutes: float | None = None

    @classmethod
    def within(cls, minutes: float, *, on_gpu: bool) -> "Scale":
        """Return the sizes for so many minutes of a GPU, or of a CPU."""
        if on_gpu:
            return cls(batch=512, steps=20_000, minutes=minutes)
        if minutes >= _LONG_MINUTES:
            return cls(minutes=minutes)
        # Too little time for prompts that the target writes itself, and for long answers.
        small = cls(functions=400, everyday=400, questions=400, own_questions=0, own_problems=0, minutes=minutes)
        return replace(small, calibrate=16, open_questions=8, evaluate=12, answer_tokens=64, batch=16, held_out=8)


# Which share of the minutes is over when a stage must end. What follows the training is short.
DEADLINES: Mapping[str, float] = {
    "prompts": 0.12,
    "calibrate-T0": 0.2,
    "calibrate-T1": 0.28,
    "evaluate-T0": 0.33,
    "evaluate-T1": 0.38,
    "made": 0.55,
    "self_written": 0.62,
    "train": 0.88,
}


@dataclass(frozen=True)
class Families:
    """Prompts by purpose: `made` and `self_written` train the drafter; the others are held out of all families."""

    made: list[Prompt]
    self_written: list[Prompt]
    calibrate: list[Prompt]
    evaluate: list[Prompt]


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


def families(
    target: LocalTarget,
    questions: Sequence[str],
    scale: Scale,
    done: Callable[[int], None],
    over: Callable[[], bool] = lambda: False,
) -> Families:
    """Make all prompts; `done` gets the number of those that the target wrote, until time is `over`.

    `questions` are gsm8k's, of its training half; none are needed.
    """
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
        for prompt in self_written(target, count, beginning, tokens, 0.8, seed, done, over)
    )
    everything = distinct([*made, *own])
    judged, held_out = of_split(everything, "calibrate"), of_split(everything, "evaluate")
    return Families(
        made=of_split(made, "train"),
        self_written=of_split(own, "train"),
        calibrate=[
            *rng.sample(judged, min(scale.calibrate, len(judged))),
            *open_questions(scale.open_questions, seed=1),
        ],
        evaluate=rng.sample(held_out, min(scale.evaluate, len(held_out))),
    )


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
        checkpoint_every_steps=min(200, max(1, scale.steps // 4)),
    )
