"""`sparktier gateway`: a second gateway, as a process of its own, before the replica of a running deployment."""

import signal
from collections.abc import Iterator

import grpc
import httpx
import pytest

from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from support.deployment import MODEL, SHOWN, Deployment
from support.gateways.gateway_command import RunningGateway, running_gateway
from support.gateways.grpc_calls import method

ASKED = {"model": MODEL, "prompt": "One two three", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def gateway(drafting: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder, replica = tmp_path_factory.mktemp("gateway"), drafting.replica_url()
    values = drafting.values | {"usage.path": folder / "usage"}
    with running_gateway(folder, replica, drafting.keys_file, config=drafting.config, **values) as running:
        yield running


def test_it_serves_what_the_deployment_s_own_gateway_serves(drafting: Deployment, gateway: RunningGateway) -> None:
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


def test_it_ends_by_a_signal_and_leaves_the_replica_alone(drafting: Deployment, gateway: RunningGateway) -> None:
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(20) == 0, gateway.output.read_text()
    assert httpx.post(f"{drafting.url}/v1/completions", json=ASKED, headers=SHOWN, timeout=120).status_code == 200
