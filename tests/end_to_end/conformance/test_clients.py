"""Clients in environments of their own against one deployment: official ones, generated ones, SGLang's benchmark.

`make conformance` makes the environments and runs this.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.deployment import CLIENT_KEY, MODEL, ROOT, Deployment, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.prove]
HERE, CLIENTS = Path(__file__).parent, ROOT / ".clients"
PYTHON, NODE = CLIENTS / "python", CLIENTS / "node"


def run(deployment: Deployment, folder: Path, *command: str | Path) -> None:
    """Run the program of a client, show what it says, and check that the engine is left idle."""
    env = {
        **os.environ,
        "SPARKTIER_URL": deployment.url,
        "SPARKTIER_GRPC": deployment.grpc_address,
        "SPARKTIER_KEY": CLIENT_KEY,
        "SPARKTIER_MODEL": MODEL,
        # SGLang's benchmark reads it.
        "OPENAI_API_KEY": CLIENT_KEY,
        "SPARKTIER_PROTO": str(ROOT / "serving" / "gateway" / "proto"),
    }
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=500)
    print(done.stdout[-20_000:])  # noqa: T201
    assert done.returncode == 0, done.stderr[-20_000:]
    wait_until(lambda: deployment.running_requests() == 0, timeout_s=60, what=lambda: "the engine to be free")


@pytest.mark.parametrize("checks", ["openai_checks.py", "grpc_checks.py"])
def test_python_clients(drafting: Deployment, checks: str, tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip("The environments of clients are not made: run make conformance.")
    options: list[str | Path] = ["-q", "-c", HERE / "python" / "pytest.ini", "--noconftest", "-p", "no:cacheprovider"]
    run(drafting, tmp_path, PYTHON / "bin" / "python", "-B", "-m", "pytest", *options, HERE / "python" / checks)


@pytest.mark.parametrize("checks", ["openai.checks.mjs", "grpc.checks.mjs"])
def test_node_clients(drafting: Deployment, checks: str) -> None:
    node = shutil.which("node")
    if node is None or not NODE.exists():
        pytest.skip("Clients for Node are not tried: install node with npm, and run make conformance.")
    # Modules are looked for beside the program.
    shutil.copy(HERE / "node" / checks, NODE / checks)
    run(drafting, NODE, node, "--test", NODE / checks)


@pytest.mark.parametrize("backend", ["sglang-oai", "sglang-oai-chat"])
def test_sglang_s_own_benchmark_client(drafting: Deployment, backend: str, predictable: Path, tmp_path: Path) -> None:
    output, requests = tmp_path / "result.jsonl", 12
    asked = {
        "backend": backend,
        "base-url": drafting.url,
        "model": MODEL,
        "tokenizer": predictable,
        "dataset-name": "random-ids",
        "num-prompts": requests,
        "random-input-len": 24,
        "random-output-len": 12,
        "request-rate": 20,
        "output-file": output,
    }
    options = [str(part) for name, value in asked.items() for part in (f"--{name}", value)]
    run(drafting, tmp_path, sys.executable, "-m", "sglang.bench_serving", *options)
    [result] = [json.loads(line) for line in output.read_text().splitlines()]
    assert result["completed"] == requests
    assert result["total_output_tokens"] > 0
