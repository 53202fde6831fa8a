"""One deployment of two replicas whose run directory is small: one never starts, the disk fills, the directory goes."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.deployment import MODEL, Deployment, wait_until
from support.namespaces import can_mount, with_small_disk

pytestmark = [pytest.mark.engine, pytest.mark.skipif(not can_mount(), reason="this user may not mount")]
DISK_BYTES = 8 << 20


@pytest.fixture(scope="module")
def harmed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment whose second replica stops for good while it starts."""
    folder = tmp_path_factory.mktemp("harmed")
    cache = folder / "cache"
    cache.mkdir()
    single = {"replicas.count": 2, "replicas.tensor_parallel": 1, "replicas.expert_parallel": 1}
    env = {**os.environ, "SPARKTIER_CACHE": str(cache)}
    deployment = Deployment(tiny, folder / "output", env, wrapper=with_small_disk(cache, DISK_BYTES), **single)
    try:
        words = "sparktier.serving.cli.main", "engine", "--replica 1"
        wait_until(lambda: bool(deployment.found(*words)), timeout_s=120, what=lambda: deployment.output)
        deployment.process(*words).send_signal(signal.SIGSTOP)
        deployment.wait_for("ready http=")
        yield deployment
        deployment.stop()
    finally:
        deployment.kill_all()


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def answer(deployment: Deployment) -> None:
    body = {"model": MODEL, "prompt": "ba be", "max_tokens": 4}
    found = httpx.post(f"{deployment.url}/v1/completions", json=body, timeout=60.0, trust_env=False)
    assert found.status_code == 200, found.text


def test_it_is_ready_and_answers_though_one_replica_never_starts(harmed: Deployment) -> None:
    assert "1 of 2 replicas serve" in harmed.output
    assert "replica 1 serves" not in harmed.output
    answer(harmed)


def test_a_full_disk_ends_nothing(harmed: Deployment) -> None:
    runs = Path(f"/proc/{harmed.pid}/root{harmed.deployment_dir}")
    with pytest.raises(OSError, match="No space left"):
        fill(runs / "filler")
    for _ in range(5):
        answer(harmed)
    page = httpx.get(f"{harmed.url}/metrics", timeout=30.0, trust_env=False)
    assert page.status_code == 200
    assert "sparktier_decode_steps_total" in page.text
    assert "failed" not in harmed.output


def test_a_removed_deployment_directory_is_made_again_when_a_replica_needs_it(harmed: Deployment) -> None:
    run = Path(f"/proc/{harmed.pid}/root{harmed.deployment_dir}")
    shutil.rmtree(run)
    answer(harmed)
    page = httpx.get(f"{harmed.url}/metrics", timeout=30.0, trust_env=False)
    assert "sparktier_decode_steps_total" in page.text
    harmed.process("sparktier.serving.cli.main", "engine", "--replica 0").send_signal(signal.SIGKILL)
    wait_until(lambda: harmed.output.count("replica 0 serves on") == 2, timeout_s=300, what=lambda: harmed.output)
    answer(harmed)
    assert "finds files of this run removed" in harmed.output
    assert (run / "replica-0.log").exists()
