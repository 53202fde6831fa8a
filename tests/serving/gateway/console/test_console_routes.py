"""The console's routes: who may read and act, what is shown of parts that are away, nothing on the public side."""

import hashlib
import logging
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest

from sparktier.serving.gateway.console.guard import Guard
from support.gateways.console_world import ADMIN_KEY, World, console_world
from support.gateways.fronts import EVERYBODY, listening

KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}
STATIC = Path(str(resources.files("sparktier.serving.gateway.console").joinpath("static")))


@pytest.fixture(autouse=True)
def no_metric_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))


def host_of(world: World) -> str:
    return world.url.removeprefix("http://")


async def acted(world: World, headers: Mapping[str, str] = KEY, **wanted: Any) -> httpx.Response:
    body = {"actor": "ann", "replica": "replica-0", "action": "latch", "reason": "drill"} | wanted
    async with httpx.AsyncClient() as client:
        return await client.post(f"{world.url}/console/api/actions", json=body, headers=dict(headers), timeout=20)


async def test_it_reads_replicas_controller_and_requests(tmp_path: Path) -> None:
    async with console_world(tmp_path) as world, httpx.AsyncClient(base_url=world.url, timeout=20) as client:
        page = await client.get("/console")
        assert (page.status_code, "importmap" in page.text) == (200, True)
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        state = (await client.get("/console/api/state")).json()
        lines = (await client.get("/console/api/decisions?after=3")).json()["lines"]
        metrics = (await client.get("/metrics")).text
    first = state["replicas"][0]
    assert (first["id"], first["life"], first["error"]) == ("replica-0", "serving", None)
    assert first["signals"]["canary"]["scored_tokens"] == 18_240
    assert 'sparktier_canary_scored_tokens_total{replica="0",dp_rank="0"} 18240.0' in metrics
    assert 'sparktier_met_requests_total{replica="1",dp_rank="0",tier="1"} 945.0' in metrics
    assert state["controller"]["replicas"] == {"replica-0": "steered", "replica-1": "steered"}
    assert [tier["name"] for tier in state["tiers"]] == ["standard", "gold", "silver"]
    assert [(row["request_id"], row["trouble"]) for row in state["requests"]] == [
        ("req-waits", "waits for room"),
        ("req-silent", "no token yet"),
        ("req-lost", "ended with 502 replica_lost"),
    ]
    assert lines[0]["seq"] == 4
    assert lines[0]["decision"]["inputs"]["wanted"] == {"0": 6, "1": 4}


async def test_a_latch_and_its_end_reach_the_replica_and_the_log_has_the_actor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with console_world(tmp_path) as world:
        assert (await acted(world)).status_code == 200
        assert world.ranks[0].state.latched == "an operator ordered it"
        assert world.ranks[1].state.latched is None
        assert (await acted(world, action="unlatch")).status_code == 200
        assert world.ranks[0].state.latched is None
        assert (await acted(world, replica="replica-9")).status_code == 409
    told = [record.getMessage() for record in caplog.records]
    assert "console: 'ann' (127.0.0.1) orders latch of replica-0: taken" in told
    assert any("'ann'" in line and "'drill'" in line and "latched off" in line for line in told)
    assert not any(ADMIN_KEY in line for line in told)


async def test_orders_reach_the_controller(tmp_path: Path) -> None:
    async with console_world(tmp_path) as world:
        assert (await acted(world, action="drain")).status_code == 200
        assert (await acted(world, action="hold", rung=1)).status_code == 200
        assert world.orders.standing["replica-0"].model_dump() == {"draining": True, "held_rung": 1, "actor": "ann"}
        async with httpx.AsyncClient() as client:
            state = (await client.get(f"{world.url}/console/api/state")).json()
        assert state["controller"]["orders"]["replica-0"]["held_rung"] == 1
        assert (await acted(world, action="resume")).status_code == 200
        assert world.orders.standing == {}
        assert (await acted(world, action="hold")).status_code == 400
        assert (await acted(world, action="dance")).status_code == 400


async def test_without_the_controller_replicas_are_shown_and_the_reason(tmp_path: Path) -> None:
    async with console_world(tmp_path) as world, httpx.AsyncClient(base_url=world.url, timeout=20) as client:
        world.controller.should_exit = True
        while (await client.get("/console/api/state")).json()["controller"]["error"] is None:
            pass
        state = (await client.get("/console/api/state")).json()
        assert "does not answer" in state["controller"]["error"]
        assert state["replicas"][0]["signals"] is not None
        assert "does not answer" in (await client.get("/console/api/decisions")).json()["error"]
        assert (await acted(world, action="drain")).status_code == 503
        assert (await acted(world)).status_code == 200, "a latch needs no controller"


REFUSED: list[tuple[dict[str, str], int]] = [
    ({}, 401),
    ({"Authorization": "Bearer wrong"}, 401),
    ({"Authorization": f"Basic {ADMIN_KEY}"}, 401),
    ({**KEY, "Origin": "http://evil.example"}, 403),
    ({**KEY, "Origin": "null"}, 403),
    ({**KEY, "Sec-Fetch-Site": "cross-site"}, 403),
    ({**KEY, "Host": "evil.example"}, 421),
    ({**KEY, "Host": "localhost.evil.example"}, 421),
    ({**KEY, "Content-Type": "text/plain"}, 415),
]


@pytest.mark.parametrize(("headers", "status"), REFUSED, ids=str)
async def test_an_action_without_key_or_from_elsewhere_is_refused(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async with console_world(tmp_path) as world:
        assert (await acted(world, headers)).status_code == status
        assert world.ranks[0].state.latched is None
        own = {**KEY, "Origin": world.url, "Sec-Fetch-Site": "same-origin"}
        assert (await acted(world, own)).status_code == 200


@pytest.mark.parametrize("path", ["/console", "/console/api/state", "/console/api/decisions"])
async def test_another_host_name_reads_nothing(tmp_path: Path, path: str) -> None:
    async with console_world(tmp_path) as world, httpx.AsyncClient(base_url=world.url) as client:
        for name, status in (("evil.example", 421), ("localhost:9000", 200), ("127.0.0.1", 200), ("[::1]:9000", 200)):
            assert (await client.get(path, headers={"Host": name})).status_code == status, name


async def test_beyond_loopback_reading_needs_the_key(tmp_path: Path) -> None:
    async with console_world(tmp_path, bound_host="0.0.0.0") as world, httpx.AsyncClient(base_url=world.url) as client:
        for path in ("/console/api/state", "/console/api/decisions"):
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers=KEY)).status_code == 200
        # The page itself tells nothing, and asks for the key.
        assert (await client.get("/console")).status_code == 200


@pytest.mark.parametrize(
    ("host", "needed"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("10.0.0.3", True)]
)
def test_only_a_loopback_listener_is_read_without_a_key(host: str, needed: bool) -> None:
    assert Guard(host, ADMIN_KEY).reads_need_a_key == needed


async def test_the_public_listener_has_nothing_of_it(tmp_path: Path) -> None:
    from sparktier.configs.settings.settings import ServerSettings
    from sparktier.serving.clients.replica import AsyncReplicaClient
    from sparktier.serving.gateway.core.gateway import Gateway
    from sparktier.serving.gateway.http.front import front
    from sparktier.serving.gateway.routing import ReplicaTable

    gateway = Gateway(ReplicaTable(()), ServerSettings(), AsyncReplicaClient(), model="tiny", access=EVERYBODY)
    async with listening(front(gateway)) as (url, _), httpx.AsyncClient(base_url=url) as client:
        for path in ("/console", "/console/api/state", "/console/static/app.mjs"):
            assert (await client.get(path)).status_code == 404
        assert (await client.post("/console/api/actions", json={}, headers=KEY)).status_code == 404


def test_vendored_files_are_those_that_the_table_names() -> None:
    table = (STATIC / "vendor" / "SOURCES.md").read_text()
    files = {path.name for path in (STATIC / "vendor").iterdir()} - {"SOURCES.md"}
    listed = {}
    for line in table.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] in files:
            listed[cells[0]] = cells[4]
    assert listed.keys() == files
    for name, digest in listed.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == digest, name


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for path in STATIC.glob("*"):
        if path.is_file():
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text, path.name
            assert "https://" not in text, path.name
