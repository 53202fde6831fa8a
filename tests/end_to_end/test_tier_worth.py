"""What the planner's weights move: accepted tokens from lenient users to those whose promise is behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparktier.serving.supervision.processes import held_port
from support.probes.tier_probe import LENIENT, STRICT

pytestmark = [pytest.mark.engine, pytest.mark.prove]
TESTS = Path(__file__).parents[1]


@pytest.mark.timeout(3600)
def test_two_strict_users_of_eight_accept_more_than_lenient_ones(tmp_path: Path) -> None:
    out = tmp_path / "tokens.json"
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    with held_port() as port, (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "support.probes.tier_probe", "32", str(out), str(port)]
        subprocess.run(command, env=environment, stdout=log, stderr=log, check=True, timeout=3000)
    tokens = json.loads(out.read_text())
    ratios = {label: by_tier[str(STRICT)] / by_tier[str(LENIENT)] for label, by_tier in tokens.items()}
    print(tokens, ratios)  # noqa: T201
    assert ratios["weights"] >= 1.2 * ratios["blind"]
