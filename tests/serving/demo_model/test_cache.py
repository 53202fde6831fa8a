"""A cached model is whole or absent, built once, and rebuilt when damaged or of another recipe."""

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sparktier.serving.demo_model.cache import MANIFEST, build_once, default_cache_dir, is_complete
from sparktier.serving.demo_model.recipe import DEMO_RECIPE


def _write(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "config.json").write_text("{}")


def _slow_build(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"half")
    time.sleep(0.3)
    _write(directory)
    with (directory.parent / "builds").open("a") as log:
        log.write("built\n")


def test_a_complete_model_is_not_built_again(tmp_path: Path) -> None:
    target = build_once(tmp_path / "models" / "demo", DEMO_RECIPE, _write)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors", MANIFEST]

    def never(directory: Path) -> None:
        pytest.fail("built again")

    assert build_once(target, DEMO_RECIPE, never) == target


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest", "extra"])
def test_a_damaged_model_is_rebuilt(tmp_path: Path, damage: str) -> None:
    target = build_once(tmp_path / "demo", DEMO_RECIPE, _write)
    if damage == "truncate":
        (target / "model.safetensors").write_bytes(b"w")
    elif damage == "delete":
        (target / "config.json").unlink()
    elif damage == "manifest":
        (target / MANIFEST).write_text("{")
    else:
        (target / "leftover").write_text("x")
    assert not is_complete(target, DEMO_RECIPE)
    build_once(target, DEMO_RECIPE, _write)
    assert is_complete(target, DEMO_RECIPE)


def test_another_recipe_is_another_model(tmp_path: Path) -> None:
    target = build_once(tmp_path / "demo", DEMO_RECIPE, _write)
    assert not is_complete(target, replace(DEMO_RECIPE, noise_frac=0.2))


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        _write(directory)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        build_once(tmp_path / "demo", DEMO_RECIPE, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.lock"]


def test_two_builders_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    target = tmp_path / "demo"
    builders = [context.Process(target=build_once, args=(target, DEMO_RECIPE, _slow_build)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
        assert builder.exitcode == 0
    assert (tmp_path / "builds").read_text() == "built\n"
    assert is_complete(target, DEMO_RECIPE)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("SPARKTIER_CACHE", raising=False)
    assert default_cache_dir() == Path("/x/sparktier")
    monkeypatch.setenv("SPARKTIER_CACHE", "/own")
    assert default_cache_dir() == Path("/own")
