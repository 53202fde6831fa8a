"""Loads the drafter and its target, and opens or generates the answers to evaluate or calibrate on.

Answers with features come from stores, or from a target that is small enough to answer prompts in this process.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sparktier.configs.errors import ArtifactError, ConfigError, Problem
from sparktier.configs.settings.model import ModelSource, local_path, model_source
from sparktier.configs.settings.settings import Settings
from sparktier.drafter.data.answered_source import answer_prompts
from sparktier.drafter.data.feature_store import FeatureStore
from sparktier.drafter.data.features import FeatureSource, FeatureSpec
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.prompts import Prompt, Split, distinct, of_split, read_prompt_files
from sparktier.drafter.data.target import Target, read_target
from sparktier.drafter.demo.location import demo_draft
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.serving.deployment.model_source import local_model
from sparktier.serving.drafting.progress_bar import progress_bar
from sparktier.serving.engine.speculation.edge_acceptance import draft_file


@dataclass(frozen=True)
class LoadedDrafter:
    """A drafter with its target's facts: `folder` is its checkpoint, `target_folder` the target's."""

    folder: Path
    target_folder: Path
    target: Target
    model: DraftModel


@dataclass(frozen=True)
class AnswerSelection:
    """Which answers to use: feature stores, and prompt files to answer.

    The target answers the first `limit` prompts of each file (of `split` alone, if given) at every temperature, with up
    to `tokens` tokens.
    """

    features: Sequence[Path]
    prompts: Sequence[Path]
    limit: int | None
    temperatures: Sequence[float]
    tokens: int
    seed: int
    split: Split | None = None


def load_drafter(settings: Settings, draft: Path | None) -> LoadedDrafter:
    """Load the drafter that `draft` or the settings name, for the target that the settings name.

    Raises:
        ConfigError: no drafter is named, or the target is not on this machine.
        ArtifactError: one of them is corrupt, or the drafter was made for another target.
    """
    if settings.model.source is ModelSource.HUB:
        rule = "must be a directory on this machine, or demo"
        raise ConfigError([Problem("model.path", rule, settings.model.path, "Fetch the model and name its folder.")])
    folder, target_folder = draft or _configured(settings), Path(local_model(settings))
    target = read_target(target_folder)
    return LoadedDrafter(folder, target_folder, target, load_draft(folder, target))


def _configured(settings: Settings) -> Path:
    path = settings.speculation.draft_path
    if path == "demo":
        return demo_draft()
    if path is None:
        rule = "a drafter must be named"
        raise ConfigError([Problem("speculation.draft_path", rule, "null", "Set it, or give --draft.")])
    if model_source(path) is not ModelSource.HUB:
        return local_path(path)
    config = draft_file(path, "config.json", settings.speculation.draft_revision, fetch=False)
    if config is None:
        rule = "must be on this machine, in a folder or the hub's cache"
        raise ConfigError([Problem("speculation.draft_path", rule, path, "Fetch the draft: hf download.")])
    return config.parent


def sources(
    drafter: LoadedDrafter, selection: AnswerSelection, console: Console, *, float32: bool = False
) -> Iterator[FeatureSource]:
    """Open or generate the answers: one source for each store, and for each prompt file and temperature.

    With `float32`, answers that are generated are computed in it, whatever the checkpoint's format.

    Raises:
        ConfigError: the selection names neither stores nor prompts.
        ArtifactError: a file is broken, belongs to another target, or has no prompt of the split.
    """
    if not selection.features and not selection.prompts:
        rule = "answers come from --prompts or --features"
        raise ConfigError([Problem("--prompts", rule, "neither", "Name a file of prompts or a store.")])
    files = read_prompt_files(selection.prompts).items()
    prompt_sets = [
        (name, _selected(prompts, path, selection))
        for path, (name, prompts) in zip(selection.prompts, files, strict=True)
    ]
    for folder in selection.features:
        store = FeatureStore(folder)
        _require_fit(drafter, store.spec, folder)
        yield store
    if not prompt_sets:
        return
    local = LocalTarget(drafter.target_folder, drafter.model.config.target_layer_ids, float32=float32)
    for name, prompts in prompt_sets:
        for temperature in selection.temperatures:
            spec = local.spec(name, temperature, selection.seed)
            with progress_bar(f"{name} T={temperature:g}: answers", len(prompts), console) as (bar, task):
                answered = answer_prompts(local, prompts, spec, selection.tokens, lambda n: bar.advance(task, n))
            yield answered


def _require_fit(drafter: LoadedDrafter, spec: FeatureSpec, folder: Path) -> None:
    spec.require_target(drafter.target, str(folder))
    read = drafter.model.config.target_layer_ids
    if spec.target_layer_ids != read:
        raise ArtifactError(
            f"{folder}: must hold the layers that the drafter reads, {list(read)} (found "
            f"{list(spec.target_layer_ids)}). Make features for this drafter."
        )


def _selected(prompts: Sequence[Prompt], path: Path, selection: AnswerSelection) -> list[Prompt]:
    selected = distinct(prompts)
    if selection.split is not None:
        selected = of_split(selected, selection.split)
    if not selected:
        raise ArtifactError(
            f"{path}: must hold prompts, at least one of the {selection.split} split (found none). Add prompts."
        )
    return selected[: selection.limit]
