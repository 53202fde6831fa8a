"""Rooms and floors: each folder lists its rooms from top to bottom in floors.yaml, and imports go down only."""

from pathlib import Path

import pytest
import yaml

from support.import_graph import import_graph, not_downward, rooms_of

ROOT = Path(__file__).resolve().parents[2]
FLOORS: dict[str, list[str]] = yaml.safe_load((Path(__file__).parent / "floors.yaml").read_text())
EDGES = import_graph(ROOT)
FOLDERS = sorted({str(parent) for file in EDGES for parent in file.parents})
MOST_FILES = {"configs": 15, "cluster": 15, "drafter": 15, "serving": 15, "kernels": 20, "tests": 30}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_room_is_listed_once(folder: str) -> None:
    assert sorted(FLOORS[folder]) == sorted(rooms_of(EDGES, Path(folder)))


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_down(folder: str) -> None:
    assert not not_downward(rooms_of(EDGES, Path(folder)), FLOORS[folder])


def test_only_folders_that_exist_are_listed() -> None:
    assert sorted(FLOORS) == FOLDERS


def test_an_import_that_goes_up_or_round_is_seen(tmp_path: Path) -> None:
    (tmp_path / "serving" / "low").mkdir(parents=True)
    (tmp_path / "serving" / "high.py").write_text("def f():\n    from sparktier.serving.low import deep\n")
    (tmp_path / "serving" / "low" / "deep.py").write_text("")
    rooms = rooms_of(import_graph(tmp_path), Path("serving"))
    assert rooms == {"high": {"low"}, "low": set()}
    assert not not_downward(rooms, ["high", "low"])
    assert not_downward(rooms, ["low", "high"]) == ["high imports low"]
    (tmp_path / "serving" / "low" / "deep.py").write_text("import sparktier.serving.high\n")
    rooms = rooms_of(import_graph(tmp_path), Path("serving"))
    assert not_downward(rooms, ["high", "low"]) == ["low imports high"]


@pytest.mark.parametrize("top", MOST_FILES)
def test_no_folder_is_crowded(top: str) -> None:
    folders = [ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir())]
    crowded = {str(folder): len(list(folder.glob("*.py"))) for folder in folders}
    assert not {folder: count for folder, count in crowded.items() if count > MOST_FILES[top]}


def test_serving_has_rooms_only() -> None:
    files = {path.name for path in (ROOT / "serving").iterdir() if path.is_file()}
    assert files == {"__init__.py", "py.typed"}
