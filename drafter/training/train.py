"""Trains a drafter from settings: checks them, loads or builds the model, opens the run, starts the training loop.

The same call trains, fine-tunes and resumes, on one rank or many.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparktier.configs.errors import ArtifactError, ConfigError, Problem
from sparktier.drafter.data.features import FeatureSource, FeatureSpec
from sparktier.drafter.data.target import Target, read_target
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.drafter.model.config import DraftConfig
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.drafter.model.recurrent import build_draft
from sparktier.drafter.training.distributed import DistributedContext
from sparktier.drafter.training.progress import StepTimes, TrainingProgress
from sparktier.drafter.training.schedule import generator
from sparktier.drafter.training.train_settings import TrainSettings
from sparktier.drafter.training.trainer import Trainer
from sparktier.drafter.training.training_run import TrainingRun
from sparktier.kernels.cpu_features import has_bfloat16_units

PROBE_STEPS = 4


def train(
    settings: TrainSettings,
    source: FeatureSource,
    context: DistributedContext,
    console: Console,
    facts: Mapping[str, Any],
) -> Path:
    """Train, or resume the run in `settings.run_dir`.

    Args:
        settings: the run.
        source: the target's features.
        context: this process's rank, and the device it computes on.
        console: where progress is shown (rank 0).
        facts: facts of the environment to write into run.json.

    Returns:
        The folder of the final draft checkpoint.

    Raises:
        ConfigError: the settings contradict the data or the ranks.
        ArtifactError: target, features, checkpoint or disk are not usable.
    """
    _check(settings, source, context)
    settings = _with_precision(settings, context)
    target = read_target(settings.target)
    source.spec.require_target(target, f"features {source.spec.dataset}")
    trainer = Trainer(settings, build_model(settings, target, source.spec), target, source, context)
    run = TrainingRun(settings.run_dir, settings.keep_checkpoints)
    if context.rank == 0:
        run.start(facts, settings)
    state = run.latest()
    if state is not None:
        trainer.restore(state)
    if context.rank == 0:
        run.rewind_metrics(trainer.step)
    with TrainingProgress(settings.steps, trainer.step, console, shown=context.rank == 0) as progress:
        trainer.run(run, progress)
    return settings.run_dir / "checkpoints" / f"step-{settings.steps:08d}" / "draft"


def seconds_per_step(settings: TrainSettings, source: FeatureSource, context: DistributedContext) -> float:
    """Take a few steps of a run on this machine, keep nothing of them, and return how long one takes."""
    few = {"steps": PROBE_STEPS, "evaluate_every_steps": PROBE_STEPS, "held_out_sequences": 1}
    trial = _with_precision(settings.model_copy(update=few), context)
    target = read_target(settings.target)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(trial, build_model(trial, target, source.spec), target, source, context)
        times = StepTimes()
        trainer.run(TrainingRun(Path(scratch), keep_checkpoints=1), times)
    # The first step also loads libraries and allocates; the last also evaluates.
    return (times.ended_s[-2] - times.ended_s[0]) / (PROBE_STEPS - 2)


def _with_precision(settings: TrainSettings, context: DistributedContext) -> TrainSettings:
    """Resolve `auto`: bf16, or fp32 on a CPU that is slow in bf16. A run resumes in the precision of its start."""
    if settings.precision != "auto":
        return settings
    quick = context.device.type != "cpu" or has_bfloat16_units()
    return settings.model_copy(update={"precision": "bf16" if quick else "fp32"})


def build_model(settings: TrainSettings, target: Target, spec: FeatureSpec) -> DraftModel:
    """Return the draft to train: the one in `init_from`, or a new one that fits target and features."""
    if settings.init_from is not None:
        model = load_draft(settings.init_from, target)
        if model.config.target_layer_ids != spec.target_layer_ids:
            raise ArtifactError(
                f"{settings.init_from}: reads the target's layers {model.config.target_layer_ids} (the features are of "
                f"{spec.target_layer_ids}). Make features for this draft."
            )
    else:
        assert settings.draft is not None
        model = build_draft(_fresh_config(settings, target, spec))
        model.initialise(generator(settings.seed))
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    model.set_target_tables(target.embedding.to(dtype), target.head.to(dtype))
    return model


def _fresh_config(settings: TrainSettings, target: Target, spec: FeatureSpec) -> DraftConfig:
    assert settings.draft is not None
    if settings.draft.mask_token_id >= target.vocab_size:
        rule = f"must be a token of the target's vocabulary, 0 to {target.vocab_size - 1}, that it never writes"
        found = str(settings.draft.mask_token_id)
        raise ConfigError([Problem("draft.mask_token_id", rule, found, "Choose one of its reserved tokens.")])
    shape = settings.draft.model_dump(exclude={"confidence_head"})
    confidence = settings.draft.confidence_head and settings.draft.method == "dspark"
    if settings.draft.method != "dspark":
        shape["markov_rank"] = 0
    return DraftConfig.model_validate(
        shape
        | {
            "hidden_size": target.hidden_size,
            "vocab_size": target.vocab_size,
            "num_target_layers": target.num_hidden_layers,
            "target_layer_ids": spec.target_layer_ids,
            "num_anchors": settings.anchors_per_row,
            "enable_confidence_head": confidence,
            "confidence_head_with_markov": confidence and shape["markov_rank"] > 0,
        }
    )


def _check(settings: TrainSettings, source: FeatureSource, context: DistributedContext) -> None:
    problems = []
    if (settings.draft is None) == (settings.init_from is None):
        found = "both" if settings.draft else "neither"
        problems.append(Problem("draft", "give either draft or init_from", found, "Remove or add one."))
    if settings.rows_per_step % context.world:
        rule = f"must be a multiple of the {context.world} ranks"
        problems.append(Problem("rows_per_step", rule, str(settings.rows_per_step), "Change it or the ranks."))
    if settings.held_out_sequences >= len(source.lengths_tokens):
        rule = f"must leave some of the {len(source.lengths_tokens)} sequences to train on"
        problems.append(Problem("held_out_sequences", rule, str(settings.held_out_sequences), "Lower it."))
    if problems:
        raise ConfigError(problems)
