"""What can't start is told once, clearly, and ends: an operator who waits for `ready` must not wait for ever."""

import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.deployment import Deployment, wait_until

pytestmark = pytest.mark.engine


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


def test_a_model_that_is_not_there(tmp_path: Path, run: list[Deployment]) -> None:
    run.append(Deployment(tmp_path / "none", tmp_path / "output"))
    assert_ends(run[0], 2, within_s=60)
    assert run[0].output.startswith("sparktier: model.path: a local model is a directory with config.json")


def test_a_port_that_is_taken(tiny: Path, tmp_path: Path, run: list[Deployment]) -> None:
    run.append(Deployment(tiny, tmp_path / "first"))
    run[0].wait_for("logs in", timeout_s=60)
    run.append(Deployment(tiny, tmp_path / "second", **{"server.port": run[0].port}))
    assert_ends(run[1], 2, within_s=60)
    assert "server.port: must be an address this machine can listen on (Address already in use)" in run[1].output
    run[0].stop(signal.SIGTERM)


def test_a_replica_s_port_is_its_own_while_it_starts(tiny: Path, tmp_path: Path, run: list[Deployment]) -> None:
    """A replica listens most of a minute after its port was chosen, and hangs if another has it by then."""
    run.append(Deployment(tiny, tmp_path / "output"))
    words = "engine", "--port"
    wait_until(lambda: bool(run[0].found(*words)), timeout_s=60, what=lambda: run[0].output)
    command = run[0].process(*words).cmdline()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", int(command[command.index("--port") + 1])))
    run[0].stop(signal.SIGTERM)


@pytest.mark.prove
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


def test_a_setting_that_this_device_can_not_run(tiny: Path, tmp_path: Path, run: list[Deployment]) -> None:
    run.append(Deployment(tiny, tmp_path / "output", **{"replicas.attention_backend": "flashinfer"}))
    assert_ends(run[0], 2, within_s=60)
    assert "configs/test.yaml: replicas.attention_backend: must be" in run[0].output
    assert "logs in" not in run[0].output


@pytest.mark.prove
def test_a_setting_that_only_an_engine_can_judge(tiny: Path, tmp_path: Path, run: list[Deployment]) -> None:
    run.append(Deployment(tiny, tmp_path / "output", **{"replicas.sglang_args": "{grammar_backend: no_such_backend}"}))
    assert_ends(run[0], 1, within_s=500)
    assert "no_such_backend" in run[0].output.splitlines()[-1]
