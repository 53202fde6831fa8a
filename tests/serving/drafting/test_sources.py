"""The drafter that a configuration names: a folder, or its snapshot in the hub's cache."""

import shutil
from pathlib import Path

import pytest

from sparktier.configs.errors import ConfigError
from sparktier.configs.loading.loader import settings_from
from sparktier.drafter.demo.location import demo_draft
from sparktier.serving.drafting.sources import _configured


def test_a_draft_of_a_hub_is_found_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    named = settings_from({"model": {"path": "demo"}, "speculation": {"method": "chain", "draft_path": "org/draft"}})
    with pytest.raises(ConfigError, match="in a folder or the hub's cache"):
        _configured(named)
    repository = tmp_path / "hub" / "models--org--draft"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    shutil.copytree(demo_draft(), repository / "snapshots" / "abc123")
    assert _configured(named) == repository / "snapshots" / "abc123"
