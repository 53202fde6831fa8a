"""The start of a local Ray cluster is read from its log, whatever else is in there."""

import sys
from pathlib import Path

import pytest

from sparktier.configs.errors import ReplicaError
from sparktier.serving.supervision import local_ray
from sparktier.serving.supervision.local_ray import LocalRay

SAYS = "import sys, time; print(sys.argv[1], flush=True); time.sleep(600)"
ENDS = "raise RuntimeError('the disk is full')"


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalRay:
    """A cluster whose head is a stand-in, set by `head`."""
    monkeypatch.setattr(local_ray, "_START_TIMEOUT_S", 20.0)
    return LocalRay(tmp_path / "ray.log", logical_gpus=1)


def head(local: LocalRay, monkeypatch: pytest.MonkeyPatch, *code: str) -> None:
    monkeypatch.setattr(local, "_command", lambda: [sys.executable, "-c", *code])


async def test_a_start_is_seen_behind_text_of_many_bytes(local: LocalRay, monkeypatch: pytest.MonkeyPatch) -> None:
    local.log_file.write_text("Ray runtime started.\n" + "fünf Größen, 東京\n" * 10_000)
    head(local, monkeypatch, SAYS, "größer: Ray runtime started.")
    await local.start()
    assert local.running
    await local.stop(grace_s=1.0)


async def test_a_start_of_before_does_not_count_and_the_reason_is_told(
    local: LocalRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.log_file.write_text("größer\nRay runtime started.\n")
    head(local, monkeypatch, ENDS)
    with pytest.raises(ReplicaError, match=r"must start .*RuntimeError: the disk is full"):
        await local.start()


async def test_a_log_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReplicaError, match=r"must start.* log to .*File exists"):
        await LocalRay(tmp_path / "file" / "ray.log", logical_gpus=1).start()
