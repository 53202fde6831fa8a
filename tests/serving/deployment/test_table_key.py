"""The key of a deployment's step times: the same for the same deployment, another for whatever changes its steps."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from sparktier.configs.errors import ArtifactError
from sparktier.configs.loading.loader import settings_from
from sparktier.serving.deployment.resolved import Resolved
from sparktier.serving.deployment.table_key import table_key


@pytest.fixture
def resolved(tmp_path: Path) -> Resolved:
    for name in ("model", "draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    settings = settings_from({"model": {"path": "org/name"}, "replicas": {"device": "cpu"}})
    model, draft = str(tmp_path / "model"), str(tmp_path / "draft")
    return Resolved(settings, device="cpu", dtype="float32", model=model, draft=draft)


def test_the_key_follows_weights_and_number_format(resolved: Resolved) -> None:
    key = table_key(resolved)
    assert key == table_key(resolved)
    assert (key.dtype, key.tensor_parallel, key.sglang) == ("float32", 1, version("sglang"))
    assert table_key(replace(resolved, dtype="bfloat16")) != key
    assert table_key(replace(resolved, draft=None)).draft_sha256 is None
    (Path(resolved.model) / "model.safetensors").write_text("trained further")
    assert table_key(resolved).model_sha256 != key.model_sha256
    assert table_key(resolved).draft_sha256 == key.draft_sha256


def test_weights_that_are_not_here_are_refused(resolved: Resolved) -> None:
    with pytest.raises(ArtifactError, match=r"org/name: holds no \*\.safetensors"):
        table_key(replace(resolved, model="org/name"))
