"""What a rank's process imports: no training code, and no heavy library that SGLang's scheduler does without."""

import json
import subprocess
import sys
from collections.abc import Iterable

import pytest

from sparktier.serving.engine.rank_options import FeatureOptions, LadderOptions, RankOptions, TreeBounds

ALONE = "import sglang.srt.managers.scheduler"
# A rank that drafts trees, makes features and keeps metrics: its hooks, then what they and SGLang import later.
RANK = """
from sparktier.serving.engine.rank_actor import Rank
from sparktier.serving.engine import plugin
plugin.register()
import sparktier.serving.engine.speculation.worker, sparktier.serving.engine.native.native_worker
import sparktier.serving.engine.cpu.linear, sparktier.serving.engine.cpu.moe, sparktier.serving.engine.cpu.platform
import sparktier.serving.engine.models.qwen2_moe
import sparktier.serving.engine.telemetry.observer, sparktier.serving.engine.telemetry.spans
"""
PRINT_MODULES = "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
OPTIONS = RankOptions(
    ladder=LadderOptions(short_tokens=2, tree=TreeBounds(rows=8, parents=2, children=2)),
    features=FeatureOptions(target_layer_ids=(1,), records_at_once=1, endpoint="ipc://@unused"),
)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """Return the modules of a process with SGLang's scheduler alone, and of one that is a rank of ours."""
    metrics = tmp_path_factory.mktemp("metrics")
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(metrics), **OPTIONS.environment()}
    with start(ALONE, {}) as alone, start(RANK, environment) as rank:
        return modules_of(alone), modules_of(rank)


def start(program: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, "-c"]
    return subprocess.Popen([*command, program + PRINT_MODULES], stdout=subprocess.PIPE, text=True)


def modules_of(process: "subprocess.Popen[str]") -> set[str]:
    output, _ = process.communicate()
    assert process.returncode == 0
    return set(json.loads(output.splitlines()[-1]))


def inside(modules: Iterable[str], *packages: str) -> set[str]:
    return {module for module in modules if any(f"{module}.".startswith(f"{package}.") for package in packages)}


def test_a_rank_imports_the_draft_model_and_no_other_part_of_the_drafter(imported: tuple[set[str], set[str]]) -> None:
    _, rank = imported
    assert inside(rank, "sparktier.serving.engine.speculation.worker"), "the program does what a rank does"
    allowed = {"sparktier.drafter"} | inside(rank, "sparktier.drafter.model")
    assert inside(rank, "sparktier.drafter") - allowed == set()


def test_a_rank_imports_no_heavy_library_that_sglang_does_without(imported: tuple[set[str], set[str]]) -> None:
    alone, rank = imported
    assert inside(alone, "sglang.srt.managers.scheduler"), "SGLang's scheduler is what it is compared with"
    assert inside(rank - alone, "scipy", "matplotlib") == set()
