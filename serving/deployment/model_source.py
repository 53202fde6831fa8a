"""From `model.path` and `speculation.draft_path` to weights that SGLang can load: builds the demo model where it is
named, and refuses a drafter that was made for another target.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sparktier.configs.errors import ArtifactError
from sparktier.configs.settings.model import ModelSource, local_path, model_source
from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.speculation import LADDERS
from sparktier.serving.engine.targets.target_support import facts_of, require_supported


class Weights(NamedTuple):
    """Both paths as SGLang takes them: a folder, or a hub id that it fetches itself."""

    model: str
    draft: str | None


def local_weights(settings: Settings, *, progress: Callable[[str], None] = lambda _: None) -> Weights:
    """Return where the weights of `settings` are on this machine.

    Raises:
        ArtifactError: there is no checkpoint where one is named, the drafter is not this target's, or the method of
            speculation can't serve it losslessly.
    """
    # Before the model, which may take a minute to build.
    drafter = _draft_folder(settings)
    model = local_model(settings, progress=progress)
    _require_supported_target(settings, Path(model))
    return Weights(model, _fitting_draft(settings, drafter, Path(model)))


def _require_supported_target(settings: Settings, model: Path) -> None:
    if settings.speculation.method == "none" or not model.is_dir():
        return
    from sparktier.configs.files import read_json

    config = read_json(model / "config.json", "a model's config.json")
    require_supported(facts_of(config), settings.speculation.method, settings.model.path)


def _draft_folder(settings: Settings) -> Path | None:
    """Return the folder of the drafter, None where there is none or SGLang fetches it."""
    path = settings.speculation.draft_path
    if path == "demo":
        from sparktier.drafter.demo.location import demo_draft

        return demo_draft()
    if path is None or model_source(path) is ModelSource.HUB:
        return None
    return local_checkpoint(path, "speculation.draft_path")


def _fitting_draft(settings: Settings, folder: Path | None, model: Path) -> str | None:
    """Return the drafter's path for SGLang. Raises ArtifactError where it was made for another model."""
    if folder is None:
        return settings.speculation.draft_path
    from sparktier.drafter.data.target import read_target
    from sparktier.drafter.model.checkpoint import check_draft, needs_conversion, require_served

    if settings.speculation.method in (*LADDERS, "dspark_native"):
        require_served(folder)
    if settings.speculation.method in (*LADDERS, "dspark_native") and needs_conversion(folder):
        return str(_converted(folder, model))
    if settings.speculation.method in LADDERS:
        check_draft(folder, read_target(model) if model.is_dir() else None)
    return str(folder)


def _converted(folder: Path, model: Path) -> Path:
    """Return a copy of the drafter in the layout that SGLang loads, made in sparktier's cache if it is not there."""
    from sparktier.drafter.data.target import read_target
    from sparktier.drafter.model.checkpoint import convert
    from sparktier.drafter.model.weights import weights_sha256
    from sparktier.serving.demo_model.cache import default_cache_dir

    if not model.is_dir():
        raise ArtifactError(
            f"{folder}: a draft in the layout of speculators is converted beside its target (found {model}, which is "
            "not on this machine). Fetch the target and name its folder in model.path."
        )
    target = read_target(model)
    final = default_cache_dir() / "drafts" / f"{weights_sha256(folder)[:16]}-{target.binding.target_sha256[:16]}"
    if not (final / "config.json").is_file():
        convert(folder, target, final)
    return final


def local_model(settings: Settings, *, progress: Callable[[str], None] = lambda _: None) -> str:
    """Return the directory of the weights, or the hub id where SGLang is to fetch them itself.

    `progress` gets a line for each stage of building the demo model. Raises ArtifactError when a local directory holds
    no checkpoint.
    """
    if settings.model.source is ModelSource.DEMO:
        from sparktier.serving.demo_model import ensure_demo_model

        return str(ensure_demo_model(progress=progress))
    if settings.model.source is ModelSource.HUB:
        return settings.model.path
    return str(local_checkpoint(settings.model.path, "model.path"))


def local_checkpoint(path: str, key: str) -> Path:
    """Return the directory of a checkpoint, or raise ArtifactError when there is none at `path`."""
    try:
        directory = local_path(path).resolve()
        if (directory / "config.json").is_file():
            # Otherwise every replica would start and stop at a file that can't be read.
            (directory / "config.json").open("rb").close()
            return directory
        found = f"none in {directory}"
    except (OSError, RuntimeError) as error:
        found = str(error)
    raise ArtifactError(
        f"{key}: a local model is a directory with config.json and weights (found {found}). "
        "Give the directory of a Hugging Face checkpoint, or `demo`."
    )
