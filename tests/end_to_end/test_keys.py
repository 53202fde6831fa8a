"""The port of a running replica: 401 without a key on every route, and the keys are seen nowhere but in their file."""

import httpx
import psutil
import pytest

from sparktier.serving.clients.replica_keys import bearer
from support import replica_http
from support.deployment import Deployment

pytestmark = pytest.mark.engine
OPEN = {"/health", "/health_generate"}
# Routes that an OpenAPI page leaves out.
UNLISTED = {("get", "/metrics"), ("get", "/openapi.json"), ("get", "/docs"), ("get", "/redoc"), ("get", "/v1/realtime")}


def routes(deployment: Deployment) -> set[tuple[str, str]]:
    page = replica_http.get(f"{deployment.replica_url()}/openapi.json", timeout=60.0)
    assert page.status_code == 200, page.text
    return {(method, path) for path, methods in page.json()["paths"].items() for method in methods} | UNLISTED


def test_every_route_asks_for_a_key(sharded: Deployment) -> None:
    found = routes(sharded)
    assert {("get", "/sparktier/signals"), ("post", "/flush_cache"), ("post", "/v1/completions")} <= found
    with httpx.Client(base_url=sharded.replica_url(), timeout=60.0, trust_env=False) as client:
        for headers in ({}, bearer("wrong"), bearer(sharded.keys.admin[:-1]), {"Authorization": sharded.keys.admin}):
            answers = {(m, path): client.request(m, path, headers=headers).status_code for m, path in sorted(found)}
            assert {route: status for route, status in answers.items() if status != 401 and route[1] not in OPEN} == {}
            assert {status for (method, path), status in answers.items() if path in OPEN and method == "get"} == {200}


def test_the_fronts_key_changes_nothing_on_the_ranks(sharded: Deployment) -> None:
    key = bearer(sharded.keys.requests)
    for path in ("/set_internal_state", "/update_weights_from_disk", "/pause_generation", "/sparktier/features"):
        assert httpx.post(sharded.replica_url() + path, headers=key, json={}, timeout=60.0).status_code == 401
    ranks = httpx.get(f"{sharded.replica_url()}/sparktier/ranks", headers=key, timeout=60.0)
    assert len(ranks.json()) == 2


def test_keys_are_seen_nowhere_but_in_their_file(sharded: Deployment) -> None:
    secrets = (sharded.keys.requests, sharded.keys.admin)
    said = {path: replica_http.get(f"{sharded.replica_url()}{path}", timeout=60.0).text for path in ("/server_info",)}
    said["output"] = sharded.output
    for file in sharded.deployment_dir.rglob("*"):
        if file.is_file() and file != sharded.keys_file:
            said[str(file)] = file.read_bytes().decode(errors="replace")
    for process in sharded.processes():
        try:
            said[str(process)] = f"{process.cmdline()} {process.environ()}"
        except psutil.Error:
            continue
    assert len(said) > 8
    assert not [place for place, text in said.items() if any(secret in text for secret in secrets)]
