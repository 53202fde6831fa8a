"""What `make gpu-check` measures, as far as it runs without a GPU: cells, files, scripted answers, whole engines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from bench import gpu_check
from sglang.srt.layers.attention import flashinfer_backend

from sparktier.serving.deployment.resolved import GPU_NODE
from sparktier.serving.engine.cuda import flashinfer_attention
from sparktier.serving.engine.cuda.flashinfer_attention import CHAIN, TREE
from support.gpu_stages import stage_a, stage_b
from support.gpu_stages.engine_cells import DRY, ENGINES, FULL, engine_arguments
from support.gpu_stages.results import Cell, Figures, Results
from support.gpu_stages.script import GSM8K, Curve, Script
from support.gpu_stages.shapes import SHAPES
from support.gpu_stages.watches import calls_of
from support.launches.attention import Wrapper
from support.resolve_arguments import resolve

CPU = torch.device("cpu")
SCRIPT = Path(gpu_check.__file__)
META = {"device": "a GPU", "commit": "abc"}
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")


def run(*words: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(python or (str(SCRIPT),)), *words]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@WITHOUT_GPU
@pytest.mark.parametrize("stage", gpu_check.NEEDS)
def test_a_stage_says_in_a_sentence_what_it_lacks(stage: str) -> None:
    assert gpu_check.lacks(stage, dry_run=False) == (
        f"stage {stage} needs a CUDA device (found none); run it on a GPU node."
    )
    assert gpu_check.lacks(stage, dry_run=True) is None


def test_a_missing_package_is_named() -> None:
    with mock.patch.object(gpu_check.importlib.util, "find_spec", lambda name: None if name == "flashinfer" else name):
        said = gpu_check.lacks("B", dry_run=True)
    assert said is not None
    assert "flashinfer" in said


def test_the_first_stage_needs_torch_alone(tmp_path: Path) -> None:
    # A node's own Python has neither SGLang nor this project's other packages.
    blocked = ("sglang", "flashinfer", "pydantic", "transformers", "ray")
    program = f"""
import importlib.abc, runpy, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(name)
sys.meta_path = [Blocked(), *(f for f in sys.meta_path if "editable" not in repr(f))]
sys.argv = ["gpu_check", "--stage", "A", "--dry-run", "--out", {str(tmp_path / "a.json")!r}]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    done = run("-c", program, python=("-P",))
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["cell"] for row in rows] == stage_a.cells(True)
    ran = {row["cell"]["part"] for row in rows if row["ran"]}
    assert ran == {"tree tail", "chain tail", "mask", "draw"} or torch.cuda.is_available()


def test_each_cell_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    file = tmp_path / "out" / "gpu.json"
    seen: list[int] = []

    def measure(cell: Cell) -> Figures:
        seen.append(len(json.loads(file.read_text())["rows"]) if file.exists() else 0)
        if cell["n"] == 1:
            raise RuntimeError("no room")
        return {"ms": 1.5 * cell["n"]}

    cells = [{"n": n} for n in range(3)]
    assert Results(file, META).run("A", cells, measure, until_s=1.0, clock=lambda: 0.0) == []
    assert seen == [0, 1, 2]
    rows = json.loads(file.read_text())["rows"]
    assert rows[1] == {"stage": "A", "cell": {"n": 1}, "error": "RuntimeError: no room"}
    assert rows[2] == {"stage": "A", "cell": {"n": 2}, "ms": 3.0}


def test_a_second_run_goes_on_where_time_was_over(tmp_path: Path) -> None:
    file, cells = tmp_path / "gpu.json", [{"n": n} for n in range(4)]
    now = iter([0.0, 1.0, 2.0, 3.0])
    left = Results(file, META).run("A", cells, lambda cell: {"n": cell["n"]}, until_s=2.0, clock=lambda: next(now))
    assert left == cells[2:]
    done: list[int] = []
    again = Results(file, META)
    assert again.run("A", cells, lambda cell: done.append(cell["n"]) or {}, until_s=2.0, clock=lambda: 0.0) == []
    assert done == [2, 3]
    # The same cell of another stage is another.
    assert not again.has("B", cells[0])
    with pytest.raises(ValueError, match="another file"):
        Results(file, {**META, "device": "another"})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("slots", ["requests", "rows"])
def test_attention_cells_drive_the_product_s_backend(monkeypatch: pytest.MonkeyPatch, slots: str, masked: bool) -> None:
    made: list[Wrapper] = []

    class Made(Wrapper):
        def __init__(self, _workspace: Any, _layout: str, **buffers: Any) -> None:
            tables = (buffers[name] for name in ("qo_indptr_buf", "paged_kv_indptr_buf", "paged_kv_indices_buf"))
            super().__init__("custom_mask_buf" in buffers, *tables)
            made.append(self)

    # SGLang imports it on GPUs alone.
    monkeypatch.setattr(flashinfer_backend, "BatchPrefillWithPagedKVCacheWrapper", Made, raising=False)
    monkeypatch.setattr(flashinfer_attention, "get_capture_attention_variant", lambda: TREE if masked else CHAIN)
    cell = {"requests": 2, "rows": 3, "context": 17, "slots": slots, "masked": masked}
    number = 2 if slots == "requests" else 6
    backend = stage_b.bare_backend(cell, slots=number, device="cpu")
    backend.init_forward_metadata_out_graph(stage_b.capture_batch(cell, slots=number, device="cpu"), in_capture=True)
    backend.init_forward_metadata_out_graph(stage_b.replay_batch(cell, slots=number, device="cpu"))
    (wrapper,) = made
    assert wrapper.masked == masked
    assert wrapper._qo_indptr_buf.diff().tolist() == [3, 3] + [0] * (number - 2)
    assert wrapper._paged_kv_indptr_buf.diff().tolist()[:2] == [20, 20]
    keys = wrapper._paged_kv_indices_buf[: int(wrapper._paged_kv_indptr_buf[-1])].tolist()
    assert len(set(keys)) == len(keys) >= 40
    # The planner is told of equal rows, as it is in serving.
    assert wrapper.modules[-1][-1] == (3 if slots == "requests" else 0)


def test_cells_have_names_of_their_own() -> None:
    for dry_run in (False, True):
        for found in (stage_a.cells(dry_run), stage_b.cells(dry_run)):
            assert len({json.dumps(cell) for cell in found}) == len(found)


def test_a_shape_s_weights_are_as_large_as_the_model_s() -> None:
    assert SHAPES["qwen3-30b-a3b"].weight_bytes() / 1e9 == pytest.approx(61.0, abs=0.2)


def test_sglang_takes_the_arguments_of_a_gpu_node(tmp_path: Path) -> None:
    cases = []
    for engine in ENGINES:
        arguments, environment = engine_arguments(engine, SHAPES["qwen3-30b-a3b"], tmp_path, FULL, GPU_NODE)
        cases.append({"kwargs": {**arguments, "use_ray": False}, "environment": environment})
    answers = resolve(cases)
    assert [answer["error"] for answer in answers] == [None] * len(ENGINES)
    resolved = [answer["resolved"] for answer in answers]
    assert [each.get("speculative_algorithm") for each in resolved] == ["SPARKTIER", None, "DSPARK"]
    assert {each["load_format"] for each in resolved} == {"dummy"}
    assert {each["attention_backend"] for each in resolved} == {"flashinfer"}


def test_a_script_s_drafts_are_right_as_often_as_its_curve_says() -> None:
    script = Script(GSM8K, vocab=512, positions=4096, seed=3, device=CPU)
    anchors, places = torch.arange(4096) % 512, torch.arange(4096)
    guesses = script.guesses(anchors, places, 5)
    right, tokens = [], anchors
    for level in range(5):
        tokens = script.next_tokens(tokens, places + level)
        right.append(guesses[:, level] == tokens.unsqueeze(1))
    first = torch.stack([hit[:, 0] for hit in right], dim=1).cumprod(dim=1)
    assert 1 + first.sum(dim=1).float().mean() == pytest.approx(Curve(GSM8K.first[:5]).chain_length, abs=0.15)
    # Guesses of a row differ, and no two are right.
    assert all(len(set(row)) == 4 for row in guesses[:50].flatten(0, 1).tolist())
    assert int(torch.stack(right).sum(dim=2).max()) == 1


def test_answers_of_different_users_differ() -> None:
    script = Script(GSM8K, vocab=512, positions=64, seed=3, device=CPU)
    tokens, places = torch.tensor([5, 6, 300]), torch.tensor([10, 10, 10])
    for level in range(20):
        tokens = script.next_tokens(tokens, places + level)
        assert len(set(tokens.tolist())) == 3


def test_overruled_logits_say_what_the_script_says() -> None:
    script = Script(GSM8K, vocab=512, positions=64, seed=3, device=CPU)
    anchors, places = torch.tensor([5, 300]), torch.tensor([10, 40])
    target, draft = torch.randn(2, 512), torch.randn(2 * 5, 512)
    script.overrule_target(target, anchors, places)
    script.overrule_draft(draft, anchors, places)
    assert target.argmax(dim=1).tolist() == script.next_tokens(anchors, places).tolist()
    assert draft.topk(4).indices.view(2, 5, 4).tolist() == script.guesses(anchors, places, 5).tolist()


def test_launches_and_waits_are_told_apart() -> None:
    events = {
        "cudaLaunchKernelExC": 7,
        "cuLaunchKernel": 2,
        "cudaGraphLaunch": 2,
        "cudaStreamSynchronize": 1,
        "aten::add": 9,
    }
    profile = SimpleNamespace(key_averages=lambda: [SimpleNamespace(key=k, count=n) for k, n in events.items()])
    assert calls_of(profile) == {"launches": 11, "waits": 1}


@pytest.mark.prove
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_of_random_weights_accepts_as_scripted(tmp_path: Path, engine: str) -> None:
    out = tmp_path / "gpu.json"
    words = ("--engine", engine, "--shape", "tiny", "--out", str(out), "--dry-run", "--minutes", "30")
    done = run(*words, python=("-m", "support.gpu_stages.engine_cells"))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(out.read_text())["rows"]
    assert not [row for row in rows if "error" in row]
    rungs = 4 if engine == "ours" else 1
    assert len(rows) == len(DRY.loads) * rungs * 3
    lengths: dict[str, list[float]] = {}
    for row in rows:
        if row["cell"]["what"] == "steps":
            lengths.setdefault(row["cell"]["rung"], []).append(row["tokens_a_step"])
        else:
            assert row["layers"] == SHAPES["tiny"].layers
            assert 2 <= row["experts_a_layer"] <= 8
    means = {rung: sum(each) / len(each) for rung, each in lengths.items()}
    chain = Curve(GSM8K.first[:5]).chain_length
    expected = {
        "off": 1.0,
        "plain": 1.0,
        "chain_short": Curve(GSM8K.first[:2]).chain_length,
        "chain": chain,
        "native": chain,
    }
    for rung in means.keys() & expected.keys():
        assert means[rung] == pytest.approx(expected[rung], rel=0.2), means
    if engine == "ours":
        assert means["tree"] > means["chain_short"]
