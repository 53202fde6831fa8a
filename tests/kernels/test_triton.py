"""The Triton kernels: equal to their oracles in interpreter mode, and compiled ahead of time for three GPUs."""

import os
import subprocess
import sys
from pathlib import Path

from sparktier.kernels.compile_report import report

CASES = Path(__file__).with_name("triton_cases.py")


def test_kernels_equal_their_oracles_in_the_interpreter() -> None:
    # A process of its own: Triton decides when a kernel is defined whether it will be interpreted.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_kernels_compile_for_every_gpu_without_spills() -> None:
    rows = report()
    assert {row.architecture for row in rows} == {"sm_80", "sm_90", "sm_100"}
    assert len(rows) == 30
    assert [row for row in rows if row.spilled_bytes] == []
    assert all(16 <= row.registers <= 128 for row in rows), rows
