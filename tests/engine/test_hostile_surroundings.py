"""One deployment in surroundings that are all bad at once; each must leave it serving."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sparktier.serving.processes import held_port
from support.deployment import MODEL, Deployment, deployed

pytestmark = pytest.mark.engine


def proxies(port: int) -> dict[str, str]:
    """Return every variable that names a proxy, each naming `port`, where nothing listens."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY")
    return {spelt: f"http://127.0.0.1:{port}" for name in names for spelt in (name, name.lower())}


@pytest.fixture(scope="module")
def besieged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment of one rank that listens on IPv6, with proxies that don't answer."""
    folder = tmp_path_factory.mktemp("hostile")
    ours = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    settings = {"server.host": "::1", "replicas.tensor_parallel": 1, "replicas.expert_parallel": 1}
    with held_port() as dead:
        env = {**ours, **proxies(dead)}
        with deployed(tiny, folder / "output", env, **settings) as deployment:
            yield deployment


def test_it_becomes_ready_and_names_an_address_that_works(besieged: Deployment) -> None:
    assert f"ready http=http://[::1]:{besieged.port}\n" in besieged.output
    body = {"model": MODEL, "prompt": "ba be", "max_tokens": 2}
    answer = httpx.post(f"{besieged.url}/v1/completions", json=body, timeout=60.0, trust_env=False)
    assert answer.status_code == 200, answer.text
