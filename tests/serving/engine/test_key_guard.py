"""Nothing on a replica's own port is answered without a key, whatever kind of route it is."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

from sparktier.serving.clients.replica_keys import bearer
from sparktier.serving.engine import key_guard

ADMIN, REQUESTS = "the-admin-key", "the-requests-key"
FOR_REQUESTS = ["/v1/completions", "/metrics", "/ready", "/sparktier/ranks"]
FOR_ADMINS = ["/sparktier/signals", "/sparktier/features", "/set_internal_state", "/mounted/", "/none", "/healthy"]


async def page(request: Request) -> Response:
    return PlainTextResponse("a secret")


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("a secret")
    await socket.close()


@pytest.fixture
def client() -> Iterator[TestClient]:
    """SGLang's way of adding a check of keys to its application, with ours in its place."""
    mounted = Mount("/mounted", make_asgi_app(registry=CollectorRegistry()))
    paths = ["/health", "/health_generate", *FOR_REQUESTS, *FOR_ADMINS[:3]]
    app = Starlette(routes=[*(Route(path, page) for path in paths), mounted, WebSocketRoute("/v1/realtime", talk)])
    key_guard._add(app, api_key=REQUESTS, admin_api_key=ADMIN)
    with TestClient(app, follow_redirects=True) as client:
        yield client


NO_KEYS: list[str | bytes | None] = [
    *(None, "", "Bearer", "Bearer ", ADMIN, f"Basic {ADMIN}", f"Bearer {ADMIN}x", f"Bearer {ADMIN[:-1]}"),
    b"Bearer \xff",
]


@pytest.mark.parametrize("value", NO_KEYS, ids=repr)
def test_without_a_key_everything_is_401(client: TestClient, value: str | bytes | None) -> None:
    headers = {} if value is None else {"Authorization": value}
    paths = [*FOR_REQUESTS, *FOR_ADMINS, "/metrics/", "//health", "/health/", "/openapi.json"]
    for method in ("GET", "POST", "OPTIONS", "HEAD", "BREW"):
        answers = {path: client.request(method, path, headers=headers) for path in paths}
        assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(paths, 401)
        assert not any("secret" in answer.text for answer in answers.values())


def test_health_needs_no_key(client: TestClient) -> None:
    assert [client.get(path).status_code for path in ("/health", "/health_generate")] == [200, 200]


def test_the_admin_key_opens_everything(client: TestClient) -> None:
    answers = {path: client.get(path, headers=bearer(ADMIN)).status_code for path in [*FOR_REQUESTS, *FOR_ADMINS]}
    assert answers == {path: 404 if path in ("/none", "/healthy") else 200 for path in answers}


def test_the_key_for_requests_opens_what_a_front_needs(client: TestClient) -> None:
    answers = {path: client.get(path, headers=bearer(REQUESTS)).status_code for path in [*FOR_REQUESTS, *FOR_ADMINS]}
    assert answers == dict.fromkeys(FOR_REQUESTS, 200) | dict.fromkeys(FOR_ADMINS, 401)


def test_a_web_socket_needs_a_key(client: TestClient) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/v1/realtime", headers=bearer(REQUESTS)),
    ):
        pass
    assert refused.value.status_code == 401
    with client.websocket_connect("/v1/realtime", headers=bearer(ADMIN)) as socket:
        assert socket.receive_text() == "a secret"


def test_a_path_below_a_proxys_root_is_the_same_path() -> None:
    app = Starlette(routes=[Route("/ready", page), Route("/other", page)])
    key_guard._add(app, api_key=REQUESTS, admin_api_key=ADMIN)

    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(app, root_path="/root")
        async with httpx.AsyncClient(transport=transport, base_url="http://a", headers=bearer(REQUESTS)) as client:
            return [(await client.get(f"/root{path}")).status_code for path in ("/ready", "/other")]

    assert asyncio.run(statuses()) == [200, 401]
