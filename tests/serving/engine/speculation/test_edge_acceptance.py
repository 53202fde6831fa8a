"""Which calibration a tree's edges go by: found where SGLang has the draft, nearest class first, named in words."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.model.edge_calibration import ChildCalibrator, TemperatureClass, write_children
from sparktier.drafter.model.weights import weights_sha256
from sparktier.serving.engine.speculation.edge_acceptance import draft_folder, read_edges

SLOPES: dict[TemperatureClass, float] = {"greedy": 2.0, "cool": 3.0, "warm": 4.0}


def fit(kind: TemperatureClass, rule: Any = "target_match") -> ChildCalibrator:
    return ChildCalibrator(
        accept_rule=rule,
        temperature_class=kind,
        slope=SLOPES[kind],
        intercept=0.0,
        samples=9,
        ece_before_frac=0.1,
        ece_after_frac=0.0,
        auc=0.9,
    )


def draft(folder: Path, *kinds: TemperatureClass, files: tuple[str, ...] = ("model.safetensors",)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    for file in files:
        (folder / file).write_bytes(file.encode())
    if kinds:
        write_children(folder / "children.json", weights_sha256(folder), "some-text", [fit(kind) for kind in kinds])
    return folder


def slopes(folder: Path) -> list[float]:
    """Of requests at temperature 0, 0.3 and 1: slope 1 is q itself."""
    temperatures = torch.tensor([0.0, 0.3, 1.0])
    q = torch.full((3, 1, 1), 0.8)
    edges = read_edges(folder, device=torch.device("cpu"))
    chances = edges.of(temperatures, greedy=temperatures == 0)(q, 1)
    found = (torch.logit(chances) / torch.logit(q)).flatten().tolist()
    return [round(slope, 3) for slope in found]


@pytest.mark.parametrize(
    ("kinds", "used"),
    [
        ((), [1.0, 1.0, 1.0]),
        (("greedy", "cool", "warm"), [2.0, 3.0, 4.0]),
        (("greedy", "warm"), [2.0, 4.0, 4.0]),
        (("greedy", "cool"), [2.0, 3.0, 3.0]),
        (("warm",), [4.0, 4.0, 4.0]),
        (("greedy",), [2.0, 2.0, 2.0]),
    ],
)
def test_a_class_without_a_fit_takes_the_nearest_one(
    tmp_path: Path, kinds: tuple[TemperatureClass, ...], used: list[float]
) -> None:
    assert slopes(draft(tmp_path / "draft", *kinds)) == used


def test_what_is_in_force_is_said(tmp_path: Path) -> None:
    def said(folder: Path) -> str:
        return read_edges(folder, device=torch.device("cpu")).calibration

    assert "q itself" in said(draft(tmp_path / "plain"))
    words = said(draft(tmp_path / "fitted", "greedy", "warm"))
    assert "some-text" in words
    assert "cool by warm" in words


def test_a_draft_in_several_files_has_its_calibration(tmp_path: Path) -> None:
    parts = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    folder = draft(tmp_path / "draft", "warm", files=parts)
    assert slopes(folder) == [4.0, 4.0, 4.0]
    (folder / parts[1]).write_bytes(b"other weights")
    with pytest.raises(ArtifactError, match="was fitted for the drafter"):
        slopes(folder)


def test_a_calibration_without_weights_is_one_sentence(tmp_path: Path) -> None:
    folder = draft(tmp_path / "draft", "warm")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="holds no"):
        slopes(folder)


def arguments(path: str, revision: str | None = None) -> Any:
    return SimpleNamespace(speculative_draft_model_path=path, speculative_draft_model_revision=revision)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with revision `main` of org/draft, and no way to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--draft"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    return repository / "snapshots" / "abc123"


def test_a_draft_of_a_hub_keeps_its_calibration(hub_cache: Path) -> None:
    draft(hub_cache, "warm")
    assert slopes(draft_folder(arguments("org/draft"))) == [4.0, 4.0, 4.0]
    assert slopes(draft_folder(arguments("org/draft", "main"))) == [4.0, 4.0, 4.0]


def test_a_draft_of_a_hub_without_calibration_has_none(hub_cache: Path) -> None:
    draft(hub_cache)
    assert slopes(draft_folder(arguments("org/draft"))) == [1.0, 1.0, 1.0]


def test_a_local_draft_is_where_it_is(tmp_path: Path) -> None:
    folder = draft(tmp_path / "draft", "cool")
    assert draft_folder(arguments(str(folder))) == folder
