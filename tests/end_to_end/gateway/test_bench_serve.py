"""`sparktier bench serve` on a real deployment, and SGLang's goodput beside its attainment."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparktier.cluster.traffic.attainment import Promise, Result, kept
from sparktier.serving.cli.main import main
from support.deployment import CLIENT_KEY, MODEL, Deployment

PROMPTS = ("ba be bi", "ku lo ma ba", "be be ku", "lo bi ba ma ku")
TOKENS = 40


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    # SGLang's client reads conversations of two turns at least, ours the user's turns of them.
    turns = [[{"from": "human", "value": text}, {"from": "gpt", "value": text}] for text in PROMPTS]
    path.write_text("\n".join(json.dumps({"conversations": pair}) for pair in turns * 6))
    return path


def bench(drafting: Deployment, prompts: Path, report: Path, **promise: float) -> list[dict[str, Any]]:
    """Load the tier gold, which has `promise`, and return its requests; the report has its one row."""
    keys = report.with_suffix(".keys.json")
    keys.write_text(json.dumps({"a": CLIENT_KEY}))
    values = [f"--set={key}={value}" for key, value in drafting.values.items()]
    values += [f"--set=tiers.5.{key}={value}" for key, value in promise.items()]
    load = ["--rate", "4", "--seconds", "6", "--tokens", str(TOKENS), "--share", "gold=1", "--prompts", str(prompts)]
    where = ["--url", drafting.url, "--keys", str(keys), "--json", str(report)]
    assert main(["bench", "serve", str(drafting.config), *values, *load, *where]) == 0
    return [json.loads(line) for line in report.with_suffix(".requests.jsonl").read_text().splitlines()]


def row_of(report: Path) -> dict[str, Any]:
    [row] = json.loads(report.read_text())["rows"]
    assert isinstance(row, dict)
    return row


def test_times_are_the_replica_s_and_attainment_is_sglang_s(
    drafting: Deployment, prompts: Path, tmp_path: Path
) -> None:
    from sglang.benchmark.goodput import calculate_goodput

    requests = bench(drafting, prompts, tmp_path / "first.json")
    assert len(requests) > 10
    for each in requests:
        assert (each["error"], each["downgraded"], each["tokens"]) == (None, False, TOKENS)
        # The replica had the first token before we did, and its clock alone tells the speed.
        assert 0 < each["ttft_ms"] <= each["client_ttft_ms"]
        assert each["tok_s"] > 0
    # A promise that about half of them keep.
    middle = sorted(each["tok_s"] for each in requests)[len(requests) // 2]
    budget_ms = sorted(each["ttft_ms"] for each in requests)[len(requests) * 3 // 4]
    outputs = [
        SimpleNamespace(
            success=True,
            ttft=each["ttft_ms"] / 1000,
            latency=each["ttft_ms"] / 1000 + (TOKENS - 1) / each["tok_s"],
            output_len=TOKENS,
        )
        for each in requests
    ]
    theirs = calculate_goodput(outputs, {"ttft": budget_ms + 1e-6, "tpot": 1000 / middle + 1e-6}, 1.0)
    promise = Promise("gold", middle, budget_ms)
    results = [Result(each["at_ms"], TOKENS, each["ttft_ms"], each["tok_s"]) for each in requests]
    ours = [kept(each, promise) for each in results]
    assert 0 < theirs.slo_attainment < 1
    assert sum(ours) / len(ours) == pytest.approx(theirs.slo_attainment)


@pytest.mark.prove
@pytest.mark.parametrize(("tok_s", "expected"), [(0.5, 1.0), (5000.0, 0.0)])
def test_sglang_s_own_client_finds_the_same_attainment(
    drafting: Deployment, prompts: Path, tmp_path: Path, tok_s: float, expected: float
) -> None:
    """Two clients, one after the other: promises that all or none keep, since the two runs are not the same one."""
    report, theirs = tmp_path / "ours.json", tmp_path / "theirs.jsonl"
    bench(drafting, prompts, report, promise_tok_s=tok_s, ttft_ms=120_000)
    ours = row_of(report)
    command = [sys.executable, "-m", "sglang.bench_serving", "--backend", "sglang-oai-chat", "--base-url", drafting.url]
    command += ["--dataset-name", "custom", "--dataset-path", str(prompts), "--sharegpt-output-len", str(TOKENS)]
    command += ["--model", MODEL, "--tokenizer", str(drafting.values["model.path"]), "--request-rate", "4"]
    command += ["--num-prompts", str(ours["requests"]), "--header", "x-sparktier-tier=gold"]
    command += ["--goodput", "ttft:120000", f"tpot:{1000 / tok_s}", "--output-file", str(theirs)]
    env = {**os.environ, "OPENAI_API_KEY": CLIENT_KEY}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(theirs.read_text())
    assert found["completed"] == ours["requests"] - ours["errors"]
    assert (ours["attainment_frac"], found["slo_attainment"]) == (expected, expected)
