"""Weights are found, or refused in one line, before anything starts: the drafter must be this target's and whole."""

from pathlib import Path

import pytest
import torch

from sparktier.configs.errors import ArtifactError
from sparktier.configs.loading.loader import load_settings, parse_overrides
from sparktier.configs.settings.settings import Settings
from sparktier.drafter.data.target import read_target
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.serving.deployment.model_source import Weights, local_weights
from support.deployment import CONFIG
from support.drafts import write_as_speculators
from support.oracles.oracle_draft import make_oracle_draft
from support.tiny_moe import make_tiny_moe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    make_oracle_draft(folder / "draft", make_tiny_moe(folder / "target"))
    make_tiny_moe(folder / "other", seed=1)
    return folder


def settings(target: Path | str, draft: Path | str) -> Settings:
    values = [f"model.path={target}", f"speculation.draft_path={draft}", "speculation.method=chain"]
    return load_settings(CONFIG, parse_overrides(values))


def test_paths_are_made_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = local_weights(settings("./target", "./draft"))
    assert found == Weights(str(folder / "target"), str(folder / "draft"))
    assert local_weights(settings(*found)) == found


def test_a_hub_id_is_left_to_sglang(folder: Path) -> None:
    draft = load_settings(
        CONFIG,
        parse_overrides(
            [f"model.path={folder / 'target'}", "speculation.draft_path=org/draft", "speculation.method=chain"]
        ),
    )
    assert local_weights(draft).draft == "org/draft"


def test_a_drafter_in_the_layout_of_speculators_is_converted_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARKTIER_CACHE", str(tmp_path / "cache"))
    theirs = tmp_path / "theirs"
    write_as_speculators(folder / "draft", theirs)
    asked = settings(folder / "target", theirs)
    draft = Path(str(local_weights(asked).draft))
    assert draft.parent == tmp_path / "cache" / "drafts"
    written = (draft / "model.safetensors").stat().st_mtime_ns
    assert Path(str(local_weights(asked).draft)) == draft
    assert (draft / "model.safetensors").stat().st_mtime_ns == written
    back, own = (load_draft(path, read_target(folder / "target")) for path in (draft, folder / "draft"))
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in own.state_dict().items())
    with pytest.raises(ArtifactError, match="is converted beside its target"):
        local_weights(settings("org/target", theirs))


def test_a_drafter_of_another_target_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="was made for another target"):
        local_weights(settings(folder / "other", folder / "draft"))


def test_a_corrupt_or_missing_drafter_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="draft_path: a local model is a directory"):
        local_weights(settings(folder / "target", tmp_path))
    broken = make_oracle_draft(tmp_path / "broken", folder / "target")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match="its digest must be that of"):
        local_weights(settings(folder / "target", broken))
