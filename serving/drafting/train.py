"""`sparktier train`: opens or makes the features, joins the other ranks, trains a drafter."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.report import report_meta
from sparktier.drafter.data.answers import read_answers
from sparktier.drafter.data.feature_stream import prefetched
from sparktier.drafter.data.features import FeatureSource
from sparktier.drafter.data.joined_stores import JoinedStores
from sparktier.drafter.training.distributed import init_distributed
from sparktier.drafter.training.train import train
from sparktier.drafter.training.train_settings import TrainSettings, load_train_settings
from sparktier.serving.clients.replica_keys import keys_of
from sparktier.serving.drafting.course import run_course
from sparktier.serving.drafting.feature_client import EngineFeatures, engine_facts

IN_FLIGHT = 4


def run(
    file: Path,
    *,
    features: Sequence[Path],
    engine: str | None,
    answers: Path | None,
    temperature: float,
    start: Path | None = None,
) -> int:
    """Train, or resume where the run stopped; print the folder of the draft.

    Args:
        file: settings of the run (`drafter/training/train_settings.py`). With `data` in them, answers, features,
            calibration and evaluation are part of the run.
        features: feature stores to train on; empty: the features come from `engine`.
        engine: address of a replica that makes the features of `answers` while training; in place of `data.engine`.
        answers: a file of the target's answers.
        temperature: the temperature at which the target wrote `answers`.
        start: a draft checkpoint to fine-tune, in place of what the settings start from.

    Raises:
        ConfigError: the settings break a rule, or name no source or two.
        ArtifactError, ReplicaError: a file is broken, or the replica can't make the features.
    """
    settings = _settings(file, start)
    console = Console()
    facts = report_meta("train", settings.seed).model_dump(mode="json")
    with init_distributed() as context:
        if settings.data is not None and not features and answers is None:
            if engine is not None:
                data = settings.data.model_copy(update={"engine": _address(engine)})
                settings = settings.model_copy(update={"data": data})
            draft = run_course(settings, context, console, facts)
        else:
            source = _source(features, engine, answers, temperature)
            draft = train(settings, source, context, console, facts)
        if context.rank == 0:
            console.print(f"draft {draft}", soft_wrap=True)
    return 0


def _settings(file: Path, start: Path | None) -> TrainSettings:
    settings = load_train_settings(file)
    return settings if start is None else settings.model_copy(update={"draft": None, "init_from": start})


def _source(features: Sequence[Path], engine: str | None, answers: Path | None, temperature: float) -> FeatureSource:
    if features and not engine and not answers:
        return prefetched(JoinedStores(features))
    if features or not engine or not answers:
        found = ", ".join(
            name for name, given in (("--features", features), ("--engine", engine), ("--answers", answers)) if given
        )
        rule = "features come from --features, from --engine with --answers, or from `data` in the file"
        raise ConfigError([Problem("--features", rule, found or "neither", "Name one source.")])
    _address(engine)
    written = read_answers(answers)
    key = keys_of(os.environ).admin
    source = EngineFeatures(engine, written, key=key)
    facts = engine_facts(engine, key=key)
    source.require_fit(facts)
    return source.stream(facts.spec(dataset=answers.stem, temperature=temperature), IN_FLIGHT)


def _address(engine: str) -> str:
    if not engine.startswith(("http://", "https://")):
        rule = "must be the address of a replica, http://host:port"
        raise ConfigError([Problem("--engine", rule, engine, "Give the replica's own address.")])
    return engine
