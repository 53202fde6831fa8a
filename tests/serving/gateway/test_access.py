"""Keys, tiers and limits over HTTP, before a scripted replica: what it gets, what clients are told, what is logged."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml

from sparktier.configs.errors import ConfigError
from sparktier.configs.loading.loader import settings_from
from sparktier.configs.settings.settings import ServerSettings
from sparktier.serving.clients.rank_facts import EngineLimits
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.access import Access
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.grpc.server import serving
from sparktier.serving.gateway.http.front import front
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.replica_life import ReplicaLife, State
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.gateway.tenants.directory import Directory
from sparktier.serving.gateway.tenants.keys import keyed_hash
from sparktier.serving.gateway.tenants.keys_file import Build, KeysFile
from sparktier.serving.gateway.tier_resolution import TierAsk, TierTable
from support.gateways.grpc_calls import details_of, free_port, method, reason_of
from support.gateways.replying_replica import replying
from support.inputs.tier_cases import CASES, GATEWAY, TIERS, TierCase

PEPPER = b"p" * 32
TABLE = TierTable(TIERS, GATEWAY)
ASKED = {"model": "tiny", "prompt": "Hello", "max_tokens": 4}
EVERY_TIER = [tier.name for tier in TIERS.values()]


class Replies:
    """A replica that keeps what it was sent and answers `answer`, or a stream of `events`."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.answer: tuple[int, dict[str, Any]] = 200, {"usage": {"total_tokens": 12}}
        self.events: list[dict[str, Any]] = []
        self.waiting: asyncio.Event | None = None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(json.loads(request.content))
        if self.waiting is not None:
            await asyncio.wait_for(self.waiting.wait(), 20)
        if self.events:
            return httpx.Response(200, content=self._streamed(), headers={"content-type": "text/event-stream"})
        return httpx.Response(self.answer[0], json=self.answer[1])

    async def _streamed(self) -> AsyncIterator[bytes]:
        for event in self.events:
            yield f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode()
        yield b"data: [DONE]\n\n"


def keys_of(folder: Path, tenants: Mapping[str, Mapping[str, Any]]) -> KeysFile:
    """Return a keys file of `tenants`; the key of tenant `a` is `sk-a`."""
    entries = {name: {"keys": [keyed_hash(PEPPER, f"sk-{name}")], **fields} for name, fields in tenants.items()}
    path = folder / "keys.yaml"
    path.write_text(yaml.safe_dump({"tenants": entries}))
    return KeysFile(path, lambda file: Directory(file, TABLE, PEPPER))


@contextlib.asynccontextmanager
async def gateway_before(access: Access, replica: Replies, **settings: Any) -> AsyncIterator[Gateway]:
    limits = EngineLimits(vocab_size=512, context_tokens=256, token_characters=12)
    async with replying(replica) as url, AsyncReplicaClient() as upstream:
        table = ReplicaTable((Replica(0, url, ReplicaLife(State.SERVING), limits=limits),))
        yield Gateway(table, ServerSettings(**settings), upstream, model="tiny", access=access)


@contextlib.asynccontextmanager
async def asked(access: Access, replica: Replies) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway_before(access, replica) as gateway:
        transport = httpx.ASGITransport(front(gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
            yield client


async def post(client: httpx.AsyncClient, key: str = "sk-a", headers: Mapping[str, str] = {}, **body: Any) -> Any:
    shown = {"authorization": f"Bearer {key}", **headers}
    return await client.post("/v1/completions", json=ASKED | body, headers=shown)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def metadata_of(ask: TierAsk) -> dict[str, str]:
    named = {"x-sparktier-tier": ask.header, "x-slo-tpot-ms": ask.tpot_ms}
    return {name: str(value) for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Told:
    """What a transport tells of one request."""

    tier: str | None = None
    usage_tier: str | None = None
    status: int = 0
    param: str | None = None
    code: str | None = None
    message: str = ""


async def over_http(access: Access, replica: Replies, ask: TierAsk) -> Told:
    async with asked(access, replica) as client:
        body = {} if ask.service_tier is None else {"service_tier": ask.service_tier}
        answer = await post(client, headers=metadata_of(ask), custom_params={"sparktier_tier": 5}, **body)
    if answer.status_code == 200:
        return Told(answer.headers["x-sparktier-tier"], answer.json()["usage"]["sparktier"]["tier"])
    error = error_of(answer)
    assert error["type"] == "invalid_request_error"
    return Told(status=answer.status_code, param=error["param"], code=error["code"], message=error["message"])


async def over_grpc(access: Access, replica: Replies, ask: TierAsk) -> Told:
    metadata = (("authorization", "Bearer sk-a"), *metadata_of(ask).items())
    request = pb.CompleteRequest(prompts=[pb.Prompt(text="Hello")], tier=ask.field)
    async with (
        gateway_before(access, replica, grpc_port=free_port()) as gateway,
        serving(gateway) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call = method(channel, "Complete")(request, metadata=metadata)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            details = details_of(error)
            [violation] = details.BadRequest.field_violations
            status = {grpc.StatusCode.INVALID_ARGUMENT: 400, grpc.StatusCode.PERMISSION_DENIED: 403}[error.code()]
            return Told(status=status, param=violation.field, code=reason_of(error), message=details.message)
        return Told(dict(await call.initial_metadata())["x-sparktier-tier"], answer.usage.tier)


# gRPC has no `service_tier`, HTTP no field.
@pytest.mark.parametrize(
    ("transport", "case"),
    [
        *((over_http, case) for case in CASES if case.ask.field is None),
        *((over_grpc, case) for case in CASES if case.ask.service_tier is None),
    ],
    ids=lambda value: value.name if isinstance(value, TierCase) else value.__name__,
)
async def test_the_tier_of_a_request_reaches_the_replica_and_its_answer(
    tmp_path: Path, transport: Callable[[Access, Replies, TierAsk], Awaitable[Told]], case: TierCase
) -> None:
    replica = Replies()
    tenants = {"a": {"tiers": ["standard", "fast", "faster"]}}
    told = await transport(Access(TABLE, keys_of(tmp_path, tenants)), replica, case.ask)
    if case.tier is None:
        assert (told.status, told.param, told.code) == (case.status, case.param, case.code)
        assert case.says in told.message
        assert replica.sent == []
        return
    assert (told.tier, told.usage_tier) == (case.tier, case.tier)
    [sent] = replica.sent
    assert sent["custom_params"] == {"sparktier_tier": TABLE.ids[case.tier], "sparktier_request": sent["rid"]}
    assert not {"priority", "service_tier"} & sent.keys()


async def test_two_headers_are_no_tier(tmp_path: Path) -> None:
    async with asked(Access(TABLE), Replies()) as client:
        headers = [("x-sparktier-tier", "fast"), ("x-sparktier-tier", "standard")]
        answer = await client.post("/v1/completions", json=ASKED, headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "unknown_tier")


async def test_a_stream_and_an_engine_s_refusal_have_the_tier(tmp_path: Path) -> None:
    replica = Replies()
    async with asked(Access(TABLE), replica) as client:
        replica.answer = 400, {"message": "no", "type": "BadRequest", "code": 400}
        refused = await post(client, headers={"x-sparktier-tier": "gold"})
        replica.events = [{"choices": [{"text": "a"}]}, {"choices": [], "usage": {"total_tokens": 3}}]
        shown = {"stream": True, "stream_options": {"include_usage": True}}
        stream = await post(client, headers={"x-sparktier-tier": "gold"}, **shown)
    assert (refused.status_code, refused.headers["x-sparktier-tier"]) == (400, "gold")
    assert (stream.status_code, stream.headers["x-sparktier-tier"]) == (200, "gold")
    assert '"sparktier":{"tier":"gold"}' in stream.text


async def test_a_client_s_priority_is_refused() -> None:
    replica = Replies()
    async with asked(Access(TABLE), replica) as client:
        answer = await post(client, priority=7)
    assert (answer.status_code, error_of(answer)["param"], replica.sent) == (400, "priority", [])


@pytest.mark.parametrize("header", [None, "Bearer sk-b", "Bearer ", "Basic sk-a", "sk-a", "Bearer \u00e9"])
async def test_without_a_key_of_a_tenant_the_answer_is_401(
    tmp_path: Path, header: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    replica = Replies()
    shown = {} if header is None else {"authorization": header.encode("latin-1")}
    with caplog.at_level(logging.DEBUG):
        async with asked(Access(TABLE, keys_of(tmp_path, {"a": {"tiers": ["standard"]}})), replica) as client:
            answers = [
                await client.post("/v1/completions", json=ASKED, headers=shown),
                await client.post("/v1/chat/completions", content=b"no JSON", headers=shown),
                await client.get("/v1/models", headers=shown),
                await client.get("/v1/models/tiny", headers=shown),
            ]
            opened = [(await client.get(path, headers=shown)).status_code for path in ("/healthz", "/readyz")]
            assert (await post(client)).status_code == 200
    assert [answer.status_code for answer in answers] == [401] * 4
    bearer = header is not None and header.startswith("Bearer") and header != "Bearer "
    for answer in answers:
        error = error_of(answer)
        assert error["type"] == "invalid_request_error"
        assert error["code"] == ("invalid_api_key" if bearer else "missing_api_key")
        assert "Authorization: Bearer KEY" in error["message"]
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "sk-b" not in answer.text
    assert opened == [200, 200]
    assert len(replica.sent) == 1
    assert not [record for record in caplog.records if "sk-" in record.getMessage()]


async def test_prefixes_of_tenants_are_apart_and_no_client_names_another_s(tmp_path: Path) -> None:
    replica = Replies()
    tenants = {name: {"tiers": ["standard"], "share_prefixes": name in "cd"} for name in "abcd"}
    async with asked(Access(TABLE, keys_of(tmp_path, tenants)), replica) as client:
        for name in "abcd":
            assert (await post(client, key=f"sk-{name}")).status_code == 200
        theirs = replica.sent[1]["extra_key"]
        for name in "ac":
            assert (await post(client, key=f"sk-{name}", extra_key=theirs)).status_code == 200
    keys = [sent.get("extra_key") for sent in replica.sent]
    a, b, c, d, a_as_b, _ = keys
    assert None not in (a, b)
    assert len({a, b, a_as_b}) == 3
    assert (c, d) == (None, None)


async def test_users_at_once_are_bounded_until_answers_are_over(tmp_path: Path) -> None:
    replica = Replies()
    replica.waiting = asyncio.Event()
    limits = {"users_at_once": 4}
    tenants = {"a": {"tiers": ["standard"], "limits": limits}, "b": {"tiers": ["standard"], "limits": limits}}
    async with asked(Access(TABLE, keys_of(tmp_path, tenants)), replica) as client:
        first = asyncio.create_task(post(client, n=3))
        while not replica.sent:
            await asyncio.sleep(0.01)
        full = await post(client, n=2)
        never = await post(client, n=5)
        replica.waiting.set()
        assert (await post(client)).status_code == 200
        assert (await post(client, key="sk-b", n=4)).status_code == 200
        assert (await first).status_code == 200
        assert (await post(client, n=4)).status_code == 200
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert (error_of(full)["type"], error_of(full)["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert (never.status_code, error_of(never)["param"], error_of(never)["code"]) == (400, "n", "too_many_users")


async def test_requests_of_a_minute_are_bounded_for_each_tenant(tmp_path: Path) -> None:
    tenants = {name: {"tiers": ["standard"], "limits": {"requests_per_min": 2}} for name in "ab"}
    async with asked(Access(TABLE, keys_of(tmp_path, tenants)), Replies()) as client:
        answers = [await post(client) for _ in range(3)]
        other = await post(client, key="sk-b")
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 30
    assert other.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_settled_on_those_of_the_answer(tmp_path: Path, stream: bool) -> None:
    """A minute has room for two requests of 60 as they are expected, and for many of 12 as they are."""
    replica = Replies()
    tenants = {"a": {"tiers": ["standard"], "limits": {"tokens_per_min": 120}}}
    if stream:
        replica.events = [{"choices": [{"text": "a"}]}, {"choices": [], "usage": {"total_tokens": 12}}]
    async with asked(Access(TABLE, keys_of(tmp_path, tenants)), replica) as client:
        answers = [await post(client, max_tokens=58, stream=stream) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 6 + [429]
    if stream:
        assert replica.sent[0]["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
        assert "total_tokens" not in answers[0].text


async def test_what_an_engine_refuses_costs_no_tokens(tmp_path: Path) -> None:
    replica = Replies()
    replica.answer = 400, {"message": "no", "type": "BadRequest", "code": 400}
    tenants = {"a": {"tiers": ["standard"], "limits": {"tokens_per_min": 120}}}
    async with asked(Access(TABLE, keys_of(tmp_path, tenants)), replica) as client:
        assert [(await post(client, max_tokens=100)).status_code for _ in range(3)] == [400] * 3


async def test_a_key_that_is_taken_out_of_the_file_opens_nothing(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, {"a": {"tiers": ["standard"]}})
    async with asked(Access(TABLE, keys), Replies()) as client:
        assert (await post(client)).status_code == 200
        keys_of(tmp_path, {"b": {"tiers": EVERY_TIER}})
        keys.poll()
        assert (await post(client)).status_code == 401
        assert (await post(client, key="sk-b", headers={"x-sparktier-tier": "gold"})).status_code == 200


FASTER_GONE = settings_from(
    {
        "model": {"path": "/m"},
        "tiers": {
            0: {"name": "standard", "default": True},
            5: {"name": "gold"},
            9: {"name": "new", "promise_tok_s": 7.0},
        },
        "gateway": {"priority_tier": "gold"},
    }
)


def test_requests_are_resolved_by_the_tiers_of_a_reload() -> None:
    access = Access(TABLE)
    everybody = access.authenticate(None)
    assert access.tier(TierAsk(header="faster"), everybody) == 2
    access.use_tiers(FASTER_GONE)
    everybody = access.authenticate(None)
    assert access.tier(TierAsk(header="new"), everybody) == 9
    with pytest.raises(Refused):
        access.tier(TierAsk(header="faster"), everybody)


def test_a_keys_file_that_names_a_tier_that_would_go_keeps_the_old_ones(tmp_path: Path) -> None:
    def directory_of(table: TierTable) -> Build:
        return lambda file: Directory(file, table, PEPPER)

    keys = keys_of(tmp_path, {"a": {"tiers": ["standard", "faster"]}})
    access = Access(TABLE, keys, directory_of)
    with pytest.raises(ConfigError, match="must be the name of a tier"):
        access.use_tiers(FASTER_GONE)
    assert access.tier(TierAsk(header="faster"), access.authenticate("Bearer sk-a")) == 2
