"""From `model.path` to weights that SGLang can load: builds the demo model where that is meant.

Knows nothing of engines.
"""

from collections.abc import Callable
from pathlib import Path

from sparktier.configs.errors import ArtifactError
from sparktier.configs.model_settings import ModelSource
from sparktier.configs.settings import Settings


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
    directory = Path(settings.model.path).expanduser().resolve()
    if not (directory / "config.json").is_file():
        raise ArtifactError(
            f"model.path: a local model is a directory with config.json and weights (found none in {directory}). "
            "Give the directory of a Hugging Face checkpoint, or `demo`."
        )
    return str(directory)
