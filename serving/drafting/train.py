"""`sparktier train`: finds the features, joins the other ranks and trains."""

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
    """Train, or go on where the run stopped, and say where the draft lies.

    Args:
        file: settings of the run (`drafter/training/train_settings.py`).
        features: stores to train on; or, without any,
        engine: address of a replica that makes the features while training, and
        answers: the target's answers to make them of, which it wrote at
        temperature: this one.

    Raises:
        ConfigError: the settings break a rule, or no source or two are named.
        ArtifactError, ReplicaError: what they name can't be used.
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
    told, key = read_answers(answers), keys_of(os.environ).admin
    made = EngineFeatures(engine, told, key=key)
    facts = engine_facts(engine, key=key)
    made.require_fit(facts)
    return made.stream(facts.spec(dataset=answers.stem, temperature=temperature), IN_FLIGHT)
