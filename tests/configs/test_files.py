"""What is written is there whole and under its name, or what was there before is."""

import os
from pathlib import Path

import pytest

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import require_room, staged, write_json


def test_contents_are_kept_before_the_name_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[Path, bool]] = []
    final = tmp_path / "folder"

    def fsync(descriptor: int) -> None:
        kept.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), final.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with staged(final) as part:
        part.mkdir()
        (part / "inner").touch()
    assert {path.name for path, renamed in kept if not renamed} == {part.name, "inner"}
    assert [path for path, renamed in kept if renamed] == [tmp_path]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_write_that_fails_leaves_what_was_there(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "final"
    old = final if kind == "file" else final / "old"
    old.parent.mkdir(exist_ok=True)
    old.write_text("old")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left"), staged(final) as part:  # noqa: PT012
        if kind == "file":
            part.write_text("new")
            monkeypatch.setattr(Path, "replace", full)
        else:
            part.mkdir()
            rename = Path.rename
            monkeypatch.setattr(Path, "rename", lambda a, b: (full if a == part else rename)(a, b))
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere" / "real.json", tmp_path / "link.json"
    real.write_text("{}")
    link.symlink_to(real)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert '"a": 1' in real.read_text()


def test_a_pipe_is_refused_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="a device or a pipe"):
        write_json(tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", ["file/inner.json", "file/deep/inner.json", "a" * 300])
def test_a_place_that_cannot_be_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match=r"must be a p.* that can be written .* another"):
        write_json(tmp_path / name, {})
    assert (tmp_path / "file").read_text() == "mine"


def test_a_probe_for_room_leaves_nothing(tmp_path: Path) -> None:
    require_room(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        require_room(tmp_path / "file" / "inner")
