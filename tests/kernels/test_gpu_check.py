"""The GPU node's check as far as it runs here: what it times computes, and it says when there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench import gpu_check

from support.gpu_stages import checks
from support.gpu_stages.checks import Choice

SCRIPT = Path(gpu_check.__file__)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "gpu-check: needs a CUDA device (found none); run it on a GPU node.\n"


def test_what_is_timed_computes() -> None:
    steps = checks.kernel_steps("cpu", batch=2, rows=8, vocab=2000)
    assert set(steps) == {"expansion", "mask", "draw"}
    assert all(step() is not None for step in steps.values())


def test_one_failed_check_fails_the_whole_and_hides_no_other() -> None:
    def broken() -> checks.Outcome:
        raise RuntimeError("no")

    assert checks.report([("good", lambda: (True, "fine"))]) == 0
    assert checks.report([("bad", lambda: (False, "off by one")), ("good", lambda: (True, "fine"))]) == 1
    assert checks.report([("raises", broken)]) == 1


def test_answers_that_part_are_told_by_how_far() -> None:
    off = [Choice("a", {"a": -0.1, "b": -2.5}), Choice("c", {"c": -0.8, "d": -0.9}), Choice("e", {"e": -0.2})]
    tie, wrong = ([*off[:1], Choice(token, {token: -0.1}), *off[2:]] for token in ("d", "z"))
    early = [Choice("b", {"b": -0.1}), *off[1:]]
    found = checks.partings([off] * 4, [off, tie, wrong, early])
    assert found == pytest.approx([0.1, float("inf"), 2.4])
    # An answer that is shorter than was asked for is no answer to compare.
    with pytest.raises(ValueError, match="shorter"):
        checks.partings([off], [off[:2]])
