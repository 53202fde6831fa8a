"""What `evaluate` and `calibrate` work on: the drafter, its target, and answers with features.

Features come from stores, or from the target itself answering prompts in this process, where it fits the machine.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sparktier.configs.errors import ArtifactError, ConfigError, Problem
from sparktier.configs.settings.model import ModelSource, local_path
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


@dataclass(frozen=True)
class Subject:
    """The drafter in hand: `folder` is its checkpoint, `target_folder` its target's."""

    folder: Path
    target_folder: Path
    target: Target
    model: DraftModel


@dataclass(frozen=True)
class Wanted:
    """Which answers: stores; prompt files, of each the first `limit` prompts (of `split` alone, if given), answered at
    every temperature with up to `tokens` tokens."""

    features: Sequence[Path]
    prompts: Sequence[Path]
    limit: int | None
    temperatures: Sequence[float]
    tokens: int
    seed: int
    split: Split | None = None


def subject(settings: Settings, draft: Path | None) -> Subject:
    """Load the drafter that `draft` or the settings name, for the target that the settings name.

    Raises:
        ConfigError: no drafter is named, or the target is not on this machine.
        ArtifactError: one of them is corrupt, or they don't belong together.
    """
    if settings.model.source is ModelSource.HUB:
        rule = "must be a directory on this machine, or demo"
        raise ConfigError([Problem("model.path", rule, settings.model.path, "Fetch the model and name its folder.")])
    folder, target_folder = draft or _configured(settings), Path(local_model(settings))
    target = read_target(target_folder)
    return Subject(folder, target_folder, target, load_draft(folder, target))


def _configured(settings: Settings) -> Path:
    path = settings.speculation.draft_path
    if path == "demo":
        return demo_draft()
    if path is None:
        rule = "a drafter must be named"
        raise ConfigError([Problem("speculation.draft_path", rule, "null", "Set it, or give --draft.")])
    return local_path(path)


def sources(who: Subject, wanted: Wanted, console: Console) -> Iterator[FeatureSource]:
    """Open or make the answers, one source per store, and per prompt file and temperature.

    Raises:
        ConfigError: neither stores nor prompts are named.
        ArtifactError: a file is broken, of another target, or has no prompt of the split.
    """
    if not wanted.features and not wanted.prompts:
        rule = "answers come from --prompts or --features"
        raise ConfigError([Problem("--prompts", rule, "neither", "Name a file of prompts or a store.")])
    asked = [
        (name, _chosen(prompts, path, wanted))
        for path, (name, prompts) in zip(wanted.prompts, read_prompt_files(wanted.prompts).items(), strict=True)
    ]
    for folder in wanted.features:
        store = FeatureStore(folder)
        _require_fit(who, store.spec, folder)
        yield store
    if not asked:
        return
    local = LocalTarget(who.target_folder, who.model.config.target_layer_ids)
    for name, prompts in asked:
        for temperature in wanted.temperatures:
            spec = local.spec(name, temperature, wanted.seed)
            with counted(f"{name} T={temperature:g}: answers", len(prompts), console) as (bar, task):
                made = answer_prompts(local, prompts, spec, wanted.tokens, lambda n: bar.advance(task, n))
            yield made


def _require_fit(who: Subject, spec: FeatureSpec, folder: Path) -> None:
    spec.require_target(who.target, str(folder))
    read = who.model.config.target_layer_ids
    if spec.target_layer_ids != read:
        raise ArtifactError(
            f"{folder}: must hold the layers that the drafter reads, {list(read)} (found "
            f"{list(spec.target_layer_ids)}). Make features for this drafter."
        )


def _chosen(prompts: Sequence[Prompt], path: Path, wanted: Wanted) -> list[Prompt]:
    chosen = distinct(prompts)
    if wanted.split is not None:
        chosen = of_split(chosen, wanted.split)
    if not chosen:
        raise ArtifactError(
            f"{path}: must hold prompts, at least one of the {wanted.split} split (found none). Add prompts."
        )
    return chosen[: wanted.limit]


@contextmanager
def counted(label: str, total: int, console: Console) -> Iterator[tuple[Progress, TaskID]]:
    """Show a bar that counts to `total` on a terminal, and a line when it is done elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield bar, bar.add_task(label, total=total)
    console.print(f"{label}: {total} done", highlight=False)
