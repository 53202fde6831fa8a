"""`sparktier train`: opens the features, joins the other ranks, trains a drafter."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.report import report_meta
from sparktier.drafter.data.answers import read_answers
from sparktier.drafter.data.features import FeatureSource
from sparktier.drafter.data.joined_stores import JoinedStores
from sparktier.drafter.training.distributed import init_distributed
from sparktier.drafter.training.train import train
from sparktier.drafter.training.train_settings import load_train_settings
from sparktier.serving.clients.replica_keys import keys_of
from sparktier.serving.drafting.feature_client import EngineFeatures, engine_facts

IN_FLIGHT = 4


def run(file: Path, *, features: Sequence[Path], engine: str | None, answers: Path | None, temperature: float) -> int:
    """Train, or resume where the run stopped; print the folder of the draft.

    Args:
        file: settings of the run (`drafter/training/train_settings.py`).
        features: feature stores to train on; empty: the features come from `engine`.
        engine: address of a replica that makes the features of `answers` while training.
        answers: a file of the target's answers.
        temperature: the temperature at which the target wrote `answers`.

    Raises:
        ConfigError: the settings break a rule, or name no source or two.
        ArtifactError, ReplicaError: a file is broken, or the replica can't make the features.
    """
    settings = load_train_settings(file)
    source = _source(features, engine, answers, temperature)
    console = Console()
    facts = report_meta("train", settings.seed).model_dump(mode="json")
    with init_distributed() as context:
        draft = train(settings, source, context, console, facts)
        if context.rank == 0:
            console.print(f"draft {draft}", soft_wrap=True)
    return 0


def _source(features: Sequence[Path], engine: str | None, answers: Path | None, temperature: float) -> FeatureSource:
    if features and not engine and not answers:
        return JoinedStores(features)
    if features or not engine or not answers:
        found = ", ".join(
            name for name, given in (("--features", features), ("--engine", engine), ("--answers", answers)) if given
        )
        rule = "features come from --features, or from --engine with --answers"
        raise ConfigError([Problem("--features", rule, found or "neither", "Name one source.")])
    if not engine.startswith(("http://", "https://")):
        rule = "must be the address of a replica, http://host:port"
        raise ConfigError([Problem("--engine", rule, engine, "Give the replica's own address.")])
    written = read_answers(answers)
    key = keys_of(os.environ).admin
    source = EngineFeatures(engine, written, key=key)
    facts = engine_facts(engine, key=key)
    source.require_fit(facts)
    return source.stream(facts.spec(dataset=answers.stem, temperature=temperature), IN_FLIGHT)
