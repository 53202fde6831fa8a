"""The simulated engine beside the real one on the demo model and its recorded text: one step ahead, and to the end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.prove]
TESTS = Path(__file__).parents[2]
PLACES, LEAST_REQUESTS = 32, 60
# A cell of the CPU table is a policy, a share of strict users and a promise; `blind` is run once for both promises.
SETTINGS = """
seeds: [11]
policies: [blind, tiered]
tables:
  avx2:
    step_times: avx2
    recorded: {root}/docs/measurements/demo-answers.npz
    deployment: {root}/configs/demo.yaml
    nodes: 11
    rung: 3
    users: [8]
    promise_factors: [0.8, 0.9]
    strict_fracs: [0.25, 0.5]
    turns: 7
    kv_tokens: 16384
"""


@pytest.mark.timeout(15000)
def test_rows_and_tokens_are_the_real_engines(tmp_path: Path) -> None:
    settings, out = tmp_path / "cells.yaml", tmp_path / "steps"
    settings.write_text(SETTINGS.format(root=TESTS.parent))
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "support.probes.ahead_probe", str(settings), str(out), str(PLACES)]
        for _ in ("run", "compare"):
            subprocess.run(command, env=environment, stdout=log, stderr=log, check=True, timeout=7000)
    units = json.loads((out / "found.json").read_text())
    runs = [run for unit in units for run in unit["runs"]]
    print([{**run, "unlike": len(run["unlike"])} for run in runs])  # noqa: T201
    assert len(runs) == 6
    for run in runs:
        require_alike(run)
    assert sum(len(run["close"]) for run in runs) <= 0.001 * sum(run["steps"] for run in runs)
    if not any(run["close"] for run in runs):
        assert all(unit["equal"] for unit in units)


def require_alike(run: dict[str, Any]) -> None:
    """Every step but those that hang on rounding is the same one step ahead, and a run without one to its end."""
    assert run["requests"] >= LEAST_REQUESTS
    assert run["steps"] > 100
    assert run["unlike_text"] == []
    listed = {number for number, _ in run["close"]}
    assert {each["step"] for each in run["unlike"]} <= listed
    assert listed or run["unlike_free"] is None
