"""The source model, read once for all tests of the demo model."""

from pathlib import Path

import pytest

from sparktier.serving.demo_model import default_cache_dir
from sparktier.serving.demo_model.dense import DenseModel, read_gguf
from sparktier.serving.demo_model.source import ensure_gguf


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    return ensure_gguf(default_cache_dir() / "models", print)


@pytest.fixture(scope="session")
def dense(gguf_path: Path) -> DenseModel:
    return read_gguf(gguf_path)
