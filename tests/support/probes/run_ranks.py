"""Runs a probe as one program for each rank."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sparktier.serving.supervision.processes import held_port
from support.engine_starts import STARTED

_TESTS = Path(__file__).parents[2]


def run_ranks(
    probe: str, before: Sequence[object], after: Sequence[str] = (), *, out: Path, ranks: int, timeout_s: int
) -> None:
    """Run `python -m support.probes.PROBE BEFORE OUT/RANK RANK RANKS PORT AFTER` for each rank, and wait for all.

    Each writes its results to `OUT/RANK`, and its log beside it.
    """
    environment = os.environ | {"PYTHONPATH": str(_TESTS), "OMP_NUM_THREADS": "1"}
    probes = []
    with held_port() as port:
        for rank in map(str, range(ranks)):
            arguments = [*map(str, before), str(out / rank), rank, str(ranks), str(port), *after]
            with (out / f"{rank}.log").open("w") as log:
                command = [sys.executable, "-m", f"support.probes.{probe}", *arguments]
                probes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            STARTED["stepped engine"] += 1
        try:
            for rank, process in enumerate(probes):
                assert process.wait(timeout=timeout_s) == 0, (out / f"{rank}.log").read_text()[-3000:]
        finally:
            for process in probes:
                process.kill()
