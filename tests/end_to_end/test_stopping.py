"""However a deployment is told to end, every process of it has ended within the time a terminal or a pod waits."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.deployment import STOP_LIMIT_S, Deployment, deployed, wait_until
from support.in_flight import in_flight

pytestmark = pytest.mark.engine
# `up` can't order the ending when it is killed; the rest then finds out by itself.
KILLED_LIMIT_S = 30.0


@pytest.fixture(scope="module")
def starting(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment whose ranks are being started."""
    deployment = Deployment(tiny, tmp_path_factory.mktemp("starting") / "output")
    try:
        wait_until(
            lambda: bool(deployment.found("engine", "--port")),
            timeout_s=120,
            what=lambda: f"a replica process in:\n{deployment.output}",
        )
        yield deployment
    finally:
        deployment.kill_all()


def test_ctrl_c_while_ray_starts(tiny: Path, tmp_path: Path) -> None:
    deployment = Deployment(tiny, tmp_path / "output")
    try:
        deployment.wait_for("logs in")
        deployment.stop()
        assert deployment.exit_status == 0
    finally:
        deployment.kill_all()


def test_a_replica_s_port_is_its_own_while_it_starts(starting: Deployment) -> None:
    """A replica listens most of a minute after its port was chosen, and hangs if another has it by then."""
    command = starting.process("engine", "--port").cmdline()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", int(command[command.index("--port") + 1])))


def test_ctrl_c_while_ranks_start(starting: Deployment) -> None:
    time.sleep(10.0)  # into the imports and the Ray actors, wherever that is on this machine
    starting.stop()
    assert starting.exit_status == 0
    assert "Traceback" not in starting.output


@pytest.mark.prove
def test_sigterm_with_requests_in_flight(tiny: Path, tmp_path: Path) -> None:
    with deployed(tiny, tmp_path / "output") as deployment, in_flight(deployment) as requests:
        took_s = deployment.stop(signal.SIGTERM)
        requests.assert_clean_ends(within_s=5.0)
        assert took_s < STOP_LIMIT_S
        assert deployment.exit_status == 0
        assert "Traceback" not in deployment.output


@pytest.mark.prove
def test_two_ctrl_c_in_a_row_change_nothing(tiny: Path, tmp_path: Path) -> None:
    with deployed(tiny, tmp_path / "output") as deployment, in_flight(deployment):
        deployment.processes()
        started = time.monotonic()
        os.kill(deployment.pid, signal.SIGINT)
        time.sleep(0.3)
        os.kill(deployment.pid, signal.SIGINT)
        deployment.wait_for_end(started=started)
        assert deployment.exit_status == 0
        assert "Traceback" not in deployment.output


@pytest.mark.prove
def test_a_kill_of_the_command_itself_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    with deployed(tiny, tmp_path / "output") as deployment, in_flight(deployment):
        deployment.processes()  # who is there, while their parent still is
        started = time.monotonic()
        os.kill(deployment.pid, signal.SIGKILL)
        deployment.wait_for_end(started=started, limit_s=KILLED_LIMIT_S)
