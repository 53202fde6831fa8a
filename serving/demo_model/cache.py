"""Keeps one built demo model per recipe in the user's cache. Knows nothing of what is in it.

Built in a temporary folder beside the target and renamed: a reader sees a whole model or none. A file lock lets the
second of two builders wait and find the first one's work.
"""

import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from sparktier.serving.demo_model.recipe import DEMO_RECIPE, SOURCE_SHA256, Recipe
from sparktier.serving.demo_model.source import ensure_gguf

MANIFEST = "sparktier.json"
_log = logging.getLogger(__name__)


def ensure_demo_model(cache_dir: Path | None = None, progress: Callable[[str], None] = _log.info) -> Path:
    """Return the demo model's checkpoint folder, building it first if it is missing or incomplete.

    `cache_dir` is sparktier's cache (see `default_cache_dir`); `progress` gets one line per stage. The first build
    downloads 93 MB and takes about half a minute; later calls read a manifest and file sizes only.
    Raises ArtifactError when the download fails or is not the file that the recipe names.
    """
    models = (cache_dir or default_cache_dir()) / "models"

    def build(directory: Path) -> None:
        # Imported here: torch and transformers take seconds, and a built model needs neither.
        from sparktier.serving.demo_model.checkpoint import write_checkpoint

        write_checkpoint(directory, ensure_gguf(models, progress), DEMO_RECIPE, progress)

    return build_once(_demo_target(models), DEMO_RECIPE, build)


def built_demo_model(cache_dir: Path | None = None) -> Path | None:
    """Return the demo model's checkpoint folder if it is complete, without building anything."""
    target = _demo_target((cache_dir or default_cache_dir()) / "models")
    return target if is_complete(target, DEMO_RECIPE) else None


def _demo_target(models: Path) -> Path:
    return models / f"demo-moe-v{DEMO_RECIPE.version}"


def default_cache_dir() -> Path:
    """`$SPARKTIER_CACHE`, else `sparktier` under `$XDG_CACHE_HOME`, else under `~/.cache`."""
    if own := os.environ.get("SPARKTIER_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparktier"


def build_once(target: Path, recipe: Recipe, build: Callable[[Path], None]) -> Path:
    """Return `target`, filled by `build(folder)` unless a complete one of the same recipe is there already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_suffix(".lock")):
        if not is_complete(target, recipe):
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                build(scratch)
                _write_manifest(scratch, recipe)
                scratch.chmod(0o755)
                shutil.rmtree(target, ignore_errors=True)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target


def is_complete(directory: Path, recipe: Recipe) -> bool:
    """Whether `directory` was built by this recipe and every file still has its size. Reads no weights."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return bool(manifest == _manifest(directory, recipe))


def _manifest(directory: Path, recipe: Recipe) -> dict[str, object]:
    sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.name != MANIFEST}
    return {"recipe": asdict(recipe), "source_sha256": SOURCE_SHA256, "bytes": sizes}


def _write_manifest(directory: Path, recipe: Recipe) -> None:
    (directory / MANIFEST).write_text(json.dumps(_manifest(directory, recipe), indent=2))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
