"""The pods of the CPU trial run as processes, by rendered commands and configuration; a real engine answers.

What a cluster does is done by `support.charts.trial`, in namespaces of its own, with a root that can't be written.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from sparktier.serving.demo_model.cache import ensure_demo_model
from support.charts.prometheus import dashboard_queries, installed
from support.charts.rendered import EXAMPLES, ROOT
from support.namespaces import can_mount

pytestmark = [
    pytest.mark.prove,
    pytest.mark.engine,
    pytest.mark.skipif(not can_mount(), reason="needs namespaces of users in which one may mount"),
]
# A network of its own has no address until its loopback is up.
_LOOPBACK_UP = "import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh', b'lo', 1))"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the trial told."""
    ensure_demo_model()
    folder = tmp_path_factory.mktemp("trial")
    example = next(each for each in EXAMPLES if each.stem == "cpu-trial")
    script = f'{sys.executable} -c "{_LOOPBACK_UP}" && exec {sys.executable} -m support.charts.trial "$0" "$1"'
    told = subprocess.run(
        ["unshare", "-Urmn", "sh", "-c", script, str(example), str(folder)],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
        timeout=3000,
    )
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def test_a_chat_passes_gateway_ray_and_engine(seen: dict[str, Any]) -> None:
    chat = seen["chat"]
    assert chat["status"] == 200
    assert chat["tier"] == chat["body"]["usage"]["sparktier"]["tier"] == "interactive"
    assert chat["body"]["usage"]["completion_tokens"] > 0
    assert seen["unkeyed"] == 401


def test_the_controller_steers_the_replica_under_its_lease_alone(seen: dict[str, Any]) -> None:
    assert seen["signals"]["plan_version"] > 0
    assert not seen["signals"]["expired"]
    assert {line.split()[0] for line in seen["api"]} == {"GET", "PUT"}


def test_helm_test_passes(seen: dict[str, Any]) -> None:
    assert seen["helm_test"] == 0


def test_pods_of_gateway_and_controller_end_by_a_signal(seen: dict[str, Any]) -> None:
    assert {name: status for name, status in seen["ends"].items() if status == "killed"} == {}
    assert seen["ends"]["trial-gateway"] == seen["ends"]["trial-controller"] == 0


def test_no_log_has_a_secret(seen: dict[str, Any]) -> None:
    for log in seen["logs"].values():
        for secret in seen["secrets"]:
            assert secret not in log


@pytest.mark.skipif(not installed(), reason="needs Debian's prometheus")
@pytest.mark.parametrize("panel", sorted(dashboard_queries()))
def test_a_panel_has_data(seen: dict[str, Any], panel: str) -> None:
    assert seen["series"][panel] > 0


@pytest.mark.skipif(not installed(), reason="needs Debian's prometheus")
def test_every_rule_can_be_evaluated(seen: dict[str, Any]) -> None:
    assert seen["broken_rules"] == []
