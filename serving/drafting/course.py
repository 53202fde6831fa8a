"""A drafter from prompts in one command: answers, features, training, calibration, evaluation, export.

The target answers in this process, or on a running replica that then hands out the features too. Everything is in the
run's folder, and a second call goes on where the first stopped.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparktier.configs.errors import ArtifactError, ConfigError, Problem
from sparktier.configs.files import staged
from sparktier.configs.report import report_meta, write_report
from sparktier.drafter.calibration.calibrate import calibrate
from sparktier.drafter.calibration.sts import STS_FILE, read_sts
from sparktier.drafter.data.answer_stores import AnswerPlan, answer_stores
from sparktier.drafter.data.answers import read_answers
from sparktier.drafter.data.chat_tokenizer import ChatTokenizer
from sparktier.drafter.data.feature_store import FeatureStore, FeatureWriter, Manifest
from sparktier.drafter.data.feature_stream import prefetched
from sparktier.drafter.data.features import FeatureSource
from sparktier.drafter.data.joined_stores import JoinedStores
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.prompts import Prompt, Split, distinct, of_split, read_prompt_files
from sparktier.drafter.data.target import read_target
from sparktier.drafter.evaluation.evaluate import Row, evaluate
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.drafter.training.distributed import DistributedContext
from sparktier.drafter.training.train import train
from sparktier.drafter.training.train_settings import DataSettings, TrainSettings
from sparktier.serving.clients.replica_keys import keys_of
from sparktier.serving.drafting.engine_answers import EngineWriter
from sparktier.serving.drafting.feature_client import EngineFacts, EngineFeatures, engine_facts

IN_FLIGHT = 4
DRAFT, EVALUATION = "draft", "evaluation.json"
_SEQUENCES_PER_SHARD = 64


class _Answered:
    """The answers of a run with their features: those that train, and stores of those that judge."""

    def __init__(self, training: FeatureSource, calibrate: list[Path], evaluate: list[Path]) -> None:
        self.training, self.calibrate, self.evaluate = training, calibrate, evaluate


def run_course(
    settings: TrainSettings, context: DistributedContext, console: Console, facts: Mapping[str, Any]
) -> Path:
    """Make the drafter of `settings`, which have `data`, and return its folder.

    Raises:
        ConfigError: the settings break a rule, or the run has several ranks.
        ArtifactError, ReplicaError: a file is broken, a split has no prompts, or the replica is gone.
    """
    data = settings.data
    assert data is not None
    if context.world > 1:
        rule = "answers are made by one process"
        cure = "Run it without torchrun, or train on stores (--features) with it."
        raise ConfigError([Problem("data", rule, f"{context.world} ranks", cure)])
    prompts = _prompts(data)
    made = _from_engine if data.engine else _from_local
    answered = made(settings, data, prompts, context.device, console)
    trained = train(settings, answered.training, context, console, facts)
    return _finished(settings, trained, answered, context.device, console)


def _prompts(data: DataSettings) -> dict[str, list[Prompt]]:
    everything = distinct(prompt for file in read_prompt_files(list(data.prompts)).values() for prompt in file)
    bounds: dict[Split, int | None] = {"train": data.limit, "calibrate": data.judged, "evaluate": data.judged}
    prompts: dict[str, list[Prompt]] = {split: of_split(everything, split)[:bound] for split, bound in bounds.items()}
    for split, found in prompts.items():
        if not found:
            raise ArtifactError(
                f"data.prompts: must have prompts of the {split} split (found none of {len(everything)}). Give "
                "more, a few hundred at least: 5% each go to calibrate and evaluate."
            )
    return prompts


def _from_local(
    settings: TrainSettings,
    data: DataSettings,
    prompts: Mapping[str, Sequence[Prompt]],
    device: torch.device,
    console: Console,
) -> _Answered:
    local = LocalTarget(settings.target, _layers(settings, data), device=device, thinking=data.thinking)
    plan = AnswerPlan(data.answer_tokens, data.batch, settings.seed, data.longest_prompt_tokens)
    folder = settings.run_dir / "features"

    def stores(split: str, name: str, temperatures: Sequence[float]) -> list[Path]:
        return answer_stores(local, prompts[split], folder, name, temperatures, plan, lambda done: _tell(console, done))

    training = prefetched(JoinedStores(stores("train", "train", data.temperatures)))
    judged = {
        split: [store for each in data.temperatures for store in stores(split, f"{split}-T{each:g}", [each])]
        for split in ("calibrate", "evaluate")
    }
    return _Answered(training, judged["calibrate"], judged["evaluate"])


def _layers(settings: TrainSettings, data: DataSettings) -> Sequence[int]:
    if settings.init_from is not None:
        return load_draft(settings.init_from, read_target(settings.target)).config.target_layer_ids
    if data.target_layer_ids is not None:
        return data.target_layer_ids
    layers = read_target(settings.target).num_hidden_layers
    # DeepSpec's: 1, 9, 17, 25, 33 of 36.
    return sorted({min(1 + place * max(layers - 4, 0) // 4, layers - 2) for place in range(5)})


def _from_engine(
    settings: TrainSettings,
    data: DataSettings,
    prompts: Mapping[str, Sequence[Prompt]],
    device: torch.device,
    console: Console,
) -> _Answered:
    del device
    key, url = keys_of(os.environ).admin, str(data.engine).rstrip("/")
    facts = engine_facts(url, key=key)
    chat = ChatTokenizer(settings.target, thinking=data.thinking)
    writer = EngineWriter(
        url, chat, data.answer_tokens, data.longest_prompt_tokens, lambda done: _tell(console, done), key=key
    )
    folder = settings.run_dir / "answers"

    def features(split: str, name: str, temperatures: Sequence[float]) -> EngineFeatures:
        file = writer.write(prompts[split], temperatures, folder / f"{name}.jsonl")
        made = EngineFeatures(url, read_answers(file), key=key)
        made.require_fit(facts)
        return made

    def store(split: str, temperature: float) -> Path:
        name = f"{split}-T{temperature:g}"
        return _stored(features(split, name, [temperature]), facts, name, temperature, settings.run_dir / "features")

    learned = features("train", "train", data.temperatures)
    training = learned.stream(facts.spec(dataset="train", temperature=min(data.temperatures)), IN_FLIGHT)
    judged = {split: [store(split, each) for each in data.temperatures] for split in ("calibrate", "evaluate")}
    return _Answered(training, judged["calibrate"], judged["evaluate"])


def _stored(made: EngineFeatures, facts: EngineFacts, name: str, temperature: float, folder: Path) -> Path:
    manifest = Manifest(
        spec=facts.spec(dataset=name, temperature=temperature),
        lengths_tokens=made.lengths_tokens,
        sequences_per_shard=_SEQUENCES_PER_SHARD,
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.fill(FeatureWriter(folder / name, manifest, shutil.disk_usage(folder).free))
    return folder / name


def _finished(
    settings: TrainSettings, trained: Path, answered: _Answered, device: torch.device, console: Console
) -> Path:
    """Calibrate and evaluate the trained draft, and return the folder that it is put into as a whole."""
    folder, report = settings.run_dir / DRAFT, settings.run_dir / EVALUATION
    if folder.exists() and report.exists():
        return folder
    target, meta = read_target(settings.target), report_meta("train", settings.seed)
    shutil.rmtree(folder, ignore_errors=True)
    with staged(folder) as part:
        shutil.copytree(trained, part)
        if load_draft(part, target).config.markov_rank > 0:
            console.print("calibration")
            calibrate(part, target, [FeatureStore(each) for each in answered.calibrate], settings.seed, part, device)
        rows = judged_rows(part, settings.target, answered.evaluate, settings.seed, device)
        write_report(report, meta, rows)
    for row in rows:
        tell_row(console, row)
    return folder


def judged_rows(draft: Path, target: Path, stores: Sequence[Path], seed: int, device: torch.device) -> list[Row]:
    """Return a report's row for each store of held-out answers: accepted length, and how right confidences are."""
    model = load_draft(draft, read_target(target)).to(device)
    sts = draft / STS_FILE
    temperatures = read_sts(sts, model.config.block_size).temperatures if sts.exists() else None
    return [
        found.row() for store in stores for found in evaluate(model, FeatureStore(store), DRAFT, [seed], temperatures)
    ]


def tell_row(console: Console, row: Row) -> None:
    """Print what matters of a report's row."""
    names = ("dataset", "temperature", "accepted_length", "ece_frac", "auc", "answers")
    shown = (f"{name} {value:.3f}" if isinstance(value := row[name], float) else f"{name} {value}" for name in names)
    console.print("evaluation: " + "  ".join(shown), highlight=False, soft_wrap=True)


def _tell(console: Console, done: object) -> None:
    console.print(f"answers: {done}", highlight=False, soft_wrap=True)
