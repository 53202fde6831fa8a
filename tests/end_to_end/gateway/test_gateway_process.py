"""`sparktier gateway`: a second gateway, as a process of its own, before the replica of a running deployment."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from sparktier.serving.clients.replica_keys import KEYS_FILE_ENV
from sparktier.serving.clients.replica_list import Listed, write_replicas
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from support.deployment import MODEL, SHOWN, Deployment, wait_until
from support.gateways.grpc_calls import free_port, method

ASKED = {"model": MODEL, "prompt": "One two three", "max_tokens": 8, "temperature": 0}


class Gateway:
    """A running `sparktier gateway` before replica 0 of `deployment`."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        replicas = folder / "replicas.json"
        write_replicas(replicas, {"0": Listed(url=deployment.replica_url())})
        self.output = folder / "output"
        self.ports = {name: free_port() for name in ("port", "grpc_port", "internal_port")}
        values = (
            {f"server.{name}": port for name, port in self.ports.items()}
            | deployment.values
            | {"usage.path": folder / "usage"}
        )
        options = [f"--set={key}={value}" for key, value in values.items()]
        command = ["gateway", str(deployment.config), "--replicas", str(replicas), *options]
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sparktier.serving.cli.main", *command],
                env={**os.environ, KEYS_FILE_ENV: str(deployment.keys_file)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(
            lambda: "ready http=" in self.output.read_text() or self.process.poll() is not None,
            timeout_s=120,
            what=self.output.read_text,
        )

    def url(self, name: str = "port") -> str:
        return f"http://127.0.0.1:{self.ports[name]}"


@pytest.fixture(scope="module")
def gateway(drafting: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(drafting, tmp_path_factory.mktemp("gateway"))
    yield running
    running.process.kill()
    running.process.wait()


def test_it_serves_what_the_deployment_s_own_gateway_serves(drafting: Deployment, gateway: Gateway) -> None:
    assert gateway.process.poll() is None, gateway.output.read_text()
    answers = [
        httpx.post(f"{url}/v1/completions", json=ASKED, headers=SHOWN, timeout=120).json()
        for url in (drafting.url, gateway.url())
    ]
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc_port']}") as channel:
        sampling = pb.Sampling(max_tokens=8, temperature=0.0)
        asked = pb.CompleteRequest(prompts=[pb.Prompt(text=ASKED["prompt"])], sampling=sampling)
        shown = (("authorization", SHOWN["Authorization"]),)
        told = method(channel, "Complete")(asked, metadata=shown, timeout=120)
    assert told.choices[0].text == answers[0]["choices"][0]["text"]
    assert "sglang:" in httpx.get(f"{gateway.url('internal_port')}/metrics", timeout=60).text


def test_it_ends_by_a_signal_and_leaves_the_replica_alone(drafting: Deployment, gateway: Gateway) -> None:
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(20) == 0, gateway.output.read_text()
    assert httpx.post(f"{drafting.url}/v1/completions", json=ASKED, headers=SHOWN, timeout=120).status_code == 200
