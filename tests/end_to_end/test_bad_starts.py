"""What only an engine finds wrong is told once, clearly, and ends: who waits for `ready` must not wait for ever.

What is found before one starts is in tests/serving/cli/test_bad_surroundings.py.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.deployment import Deployment, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.prove]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[list[Deployment]]:
    """Deployments to be ended after the test."""
    started: list[Deployment] = []
    yield started
    for deployment in started:
        deployment.kill_all()


def assert_ends(deployment: Deployment, status: int, *, within_s: float) -> None:
    wait_until(lambda: deployment.exit_status is not None, timeout_s=within_s, what=lambda: deployment.output)
    assert deployment.exit_status == status, deployment.output
    assert "Traceback" not in deployment.output
    assert deployment.processes() == []


def test_a_checkpoint_that_is_cut_off(tiny: Path, tmp_path: Path, run: list[Deployment]) -> None:
    """Three first starts fail, each with the line that says why; then the command ends."""
    shutil.copytree(tiny, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    run.append(Deployment(tmp_path / "cut", tmp_path / "output"))
    assert_ends(run[0], 1, within_s=500)
    assert run[0].output.count("replica 0 failed: its process ended with status") == 3
    last = run[0].output.splitlines()[-1]
    assert last.startswith("sparktier: replica 0 must start within 3 attempts")
    assert "safetensors" in last.lower()


def test_a_setting_that_only_an_engine_can_judge(tiny: Path, tmp_path: Path, run: list[Deployment]) -> None:
    run.append(Deployment(tiny, tmp_path / "output", **{"replicas.sglang_args": "{grammar_backend: no_such_backend}"}))
    assert_ends(run[0], 1, within_s=500)
    assert "no_such_backend" in run[0].output.splitlines()[-1]
