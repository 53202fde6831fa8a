"""`sparktier.v1` over real sockets before a scripted replica: answers, tiers, errors, cancellation and bounds."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sparktier.configs.errors import ConfigError
from sparktier.configs.settings.server import ServerSettings
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.access import Access
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.grpc import answers
from sparktier.serving.gateway.grpc.server import serving
from sparktier.serving.gateway.grpc.service import SERVICE
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.replica_life import ReplicaLife, State
from sparktier.serving.gateway.routing import Replica, ReplicaTable
from sparktier.serving.gateway.tenants.directory import Tenant
from support.gateways import fronts
from support.gateways.grpc_calls import details_of, free_port, method, reason_of
from support.scripted_replica import STREAM_END, STREAM_HEAD, Script, chunk, json_answer, scripted_replica

HELLO = pb.CompleteRequest(model="tiny", prompts=[pb.Prompt(text="Hello")])
CHAT = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="Hi")])
USAGE = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
DONE = chunk(b"data: [DONE]\n\n")


def event(**message: Any) -> bytes:
    return b"data: " + json.dumps(message, separators=(",", ":")).encode() + b"\n\n"


@contextlib.asynccontextmanager
async def called(
    script: Script, *, access: Access = fronts.EVERYBODY, **settings: Any
) -> AsyncIterator[tuple[grpc.aio.Channel, Replica]]:
    """Yield a channel to a gateway before one replica that runs `script`."""
    async with scripted_replica(script) as url, AsyncReplicaClient() as client:
        replica = fronts.serving(0, url)
        defaults = {"grpc_port": free_port(), "shutdown_grace_s": 0.1}
        server = ServerSettings(**{**defaults, **settings})
        gateway = Gateway(ReplicaTable((replica,)), server, client, model="tiny", access=access)
        async with serving(gateway) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel, replica


def answering(answer: Mapping[str, Any], sent: list[dict[str, Any]] | None = None) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        if sent is not None:
            sent.append(json.loads(body))
        writer.write(json_answer(json.dumps(answer).encode()))

    return script


def streaming(*events: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        for part in (STREAM_HEAD, *map(chunk, events), DONE + STREAM_END):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)

    return script


async def test_a_completion_is_answered_with_its_tier_and_usage() -> None:
    choice = {"index": 0, "text": "a b", "finish_reason": "length"}
    logprobs = {"tokens": ["a", " b"], "token_logprobs": [-1.0, -2.0], "text_offset": [-1, -1], "top_logprobs": None}
    told = {"id": "x", "model": "tiny", "created": 7, "choices": [choice | {"logprobs": logprobs}], "usage": USAGE}
    sent: list[dict[str, Any]] = []
    asked = pb.CompleteRequest(
        prompts=[pb.Prompt(token_ids=pb.TokenIds(ids=[1, 2]))],
        sampling=pb.Sampling(max_tokens=2, temperature=0.0, seed=-5, stop=["x"], logit_bias={3: 1.5}),
        logprobs=1,
    )
    async with called(answering(told, sent)) as (channel, replica):
        call = method(channel, "Complete")(asked, metadata=(("x-request-id", "mine"),))
        answer = await call
        initial = dict(await call.initial_metadata())
    assert (answer.id, answer.model, answer.created, answer.choices[0].text) == ("x", "tiny", 7, "a b")
    assert [(token.token, token.logprob, token.text_offset) for token in answer.choices[0].logprobs] == [
        ("a", -1.0, 0),
        (" b", -2.0, 1),
    ]
    assert answer.usage == pb.Usage(prompt_tokens=4, completion_tokens=2, total_tokens=6, tier="standard")
    assert (initial["x-request-id"], initial["x-sparktier-tier"]) == ("mine", "standard")
    [body] = sent
    expected = {"prompt": [1, 2], "max_tokens": 2, "temperature": 0.0, "seed": -5, "stop": ["x"], "logprobs": 1}
    assert expected.items() <= body.items()
    assert body["logit_bias"] == {"3": 1.5}
    assert replica.in_flight == 0


async def test_a_chat_keeps_its_tools_and_what_was_said() -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]}
    told = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    sent: list[dict[str, Any]] = []
    asked = pb.ChatRequest(
        messages=[
            pb.ChatMessage(role="user", content="Hi"),
            pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(id="c", name="f", arguments="{}")]),
            pb.ChatMessage(role="tool", tool_call_id="c", content="3"),
        ],
        sampling=pb.Sampling(response_format_json='{"type": "json_object"}'),
    )
    async with called(answering(told, sent)) as (channel, _):
        answer = await method(channel, "Chat")(asked)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message == pb.ChatMessage(
        role="assistant", reasoning_content="hm", tool_calls=[pb.ToolCall(id="c", name="f", arguments="{}")]
    )
    assert [message["role"] for message in sent[0]["messages"]] == ["user", "assistant", "tool"]
    assert sent[0]["response_format"] == {"type": "json_object"}


async def test_a_stream_comes_in_pieces_one_a_chunk_and_the_last_has_usage() -> None:
    token = event(id="x", choices=[{"index": 0, "delta": {"content": "a"}}])
    end = event(id="x", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    async with called(streaming(token, token + token, end, event(choices=[], usage=USAGE))) as (channel, _):
        pieces = [piece async for piece in method(channel, "StreamChat")(CHAT)]
    assert [[delta.message.content for delta in piece.deltas] for piece in pieces] == [["a"], ["a", "a"], [""], []]
    assert pieces[2].deltas[0].finish_reason == "stop"
    assert not pieces[0].deltas[0].HasField("finish_reason")
    assert [piece.HasField("usage") for piece in pieces] == [False, False, False, True]
    assert (pieces[3].usage.tier, pieces[3].usage.completion_tokens) == ("standard", 2)


@pytest.mark.parametrize(
    ("asked", "code", "reason", "param"),
    [
        (pb.CompleteRequest(), grpc.StatusCode.INVALID_ARGUMENT, "invalid_value", "prompts"),
        (
            pb.CompleteRequest(prompts=[pb.Prompt(text="a"), pb.Prompt(token_ids=pb.TokenIds(ids=[1]))]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_value",
            "prompts",
        ),
        (
            pb.CompleteRequest(prompts=[pb.Prompt(text="a")] * 129),
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_value",
            "prompts",
        ),
        (
            pb.CompleteRequest(prompts=HELLO.prompts, sampling=pb.Sampling(temperature=float("nan"))),
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_value",
            "temperature",
        ),
        (
            pb.CompleteRequest(prompts=HELLO.prompts, sampling=pb.Sampling(response_format_json="{")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_value",
            "response_format_json",
        ),
        (
            pb.CompleteRequest(model="other", prompts=HELLO.prompts),
            grpc.StatusCode.NOT_FOUND,
            "model_not_found",
            "model",
        ),
    ],
)
async def test_what_is_wrong_is_a_rich_error(
    asked: pb.CompleteRequest, code: grpc.StatusCode, reason: str, param: str
) -> None:
    async with called(answering({})) as (channel, replica):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await method(channel, "Complete")(asked)
    details = details_of(failed.value)
    assert (failed.value.code(), reason_of(failed.value)) == (code, reason)
    assert details.ErrorInfo.domain == "sparktier"
    assert [violation.field for violation in details.BadRequest.field_violations] == [param]
    assert failed.value.details() == details.message
    assert replica.in_flight == 0


async def test_a_lost_replica_ends_a_stream_with_its_code() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(STREAM_HEAD + chunk(event(choices=[{"index": 0, "text": "a"}])))
        await writer.drain()
        await asyncio.sleep(0.2)

    seen = []
    async with called(script) as (channel, replica):
        call = method(channel, "StreamComplete")(HELLO)
        seen.append(await call.read())
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
        assert replica.in_flight == 0
    assert seen[0].deltas[0].text == "a"
    assert (failed.value.code(), reason_of(failed.value)) == (grpc.StatusCode.UNAVAILABLE, "replica_lost")


async def test_without_a_place_clients_are_told_when_to_come_again() -> None:
    async with called(answering({})) as (channel, replica):
        replica.life = ReplicaLife(State.DOWN)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await method(channel, "Complete")(HELLO)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert details_of(failed.value).RetryInfo.retry_delay.seconds == 5


@pytest.mark.parametrize("ending", ["cancel", "deadline"])
@pytest.mark.parametrize("name", ["Complete", "StreamComplete"])
async def test_a_call_that_ends_early_ends_the_engine_s_request(name: str, ending: str) -> None:
    hung_up = asyncio.Event()
    begun = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        if name.startswith("Stream"):
            writer.write(STREAM_HEAD + chunk(event(choices=[{"index": 0, "text": "a"}])))
        begun.set()
        assert await reader.read() == b""
        hung_up.set()

    async with called(script) as (channel, replica):
        call = method(channel, name)(HELLO, timeout=0.5 if ending == "deadline" else None)
        await asyncio.wait_for(begun.wait(), 10)
        if ending == "cancel":
            call.cancel()
        await asyncio.wait_for(hung_up.wait(), 10)
        async with asyncio.timeout(10):
            while replica.in_flight:
                await asyncio.sleep(0.01)
        expected = grpc.StatusCode.CANCELLED if ending == "cancel" else grpc.StatusCode.DEADLINE_EXCEEDED
        assert await call.code() is expected


async def test_a_message_that_is_too_large_is_refused() -> None:
    async with called(answering({}), max_body_bytes=2048) as (channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await method(channel, "Complete")(pb.CompleteRequest(prompts=[pb.Prompt(text="x" * 4096)]))
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await method(channel, "Complete")(HELLO)) == pb.CompleteResponse()


class Keyed(Access):
    """Asks for the key `k`."""

    async def identify(self, authorization: str | None) -> Tenant:
        if authorization != "Bearer k":
            raise Refused("No key.", status=401, code="invalid_api_key")
        return await super().identify(None)


async def test_a_message_is_decoded_once_its_sender_is_known() -> None:
    async with called(answering({}), access=Keyed(fronts.EVERYBODY.tiers)) as (channel, _):
        for metadata, code in (
            ((), grpc.StatusCode.UNAUTHENTICATED),
            ((("authorization", "Bearer k"),), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await channel.unary_unary(f"/{SERVICE}/Complete")(b"\xff no message", metadata=metadata)
            assert failed.value.code() is code
    assert failed.value.details() == "The message must be a sparktier.v1.CompleteRequest. Send one."


async def test_metadata_that_is_too_large_is_refused() -> None:
    async with called(answering({})) as (channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await method(channel, "Complete")(HELLO, metadata=(("x-large", "x" * (64 << 10)),))
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_health_is_that_of_the_replicas() -> None:
    async with called(answering({})) as (channel, replica):
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        statuses = health_pb2.HealthCheckResponse
        while (await watch.read()).status != statuses.SERVING:
            pass
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == statuses.SERVING
        replica.life = ReplicaLife(State.DOWN)
        assert (await watch.read()).status == statuses.NOT_SERVING
        watch.cancel()


async def test_reflection_shows_the_service() -> None:
    async with called(answering({})) as (channel, _):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        listed, file = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    assert SERVICE in [service.name for service in listed.list_services_response.service]
    assert b"StreamChat" in file.file_descriptor_response.file_descriptor_proto[0]


async def test_a_file_of_tls_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.pem")
    with pytest.raises(ConfigError, match="grpc_tls_key_file: must be a file that can be read"):
        async with called(answering({}), grpc_tls_cert_file=missing, grpc_tls_key_file=missing):
            pass


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Return a key and a certificate of `localhost`."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command, *names], check=True, capture_output=True, timeout=60)
    return key, cert


async def test_with_tls_only_a_client_that_trusts_it_is_served(tmp_path: Path) -> None:
    key, cert = self_signed(tmp_path)
    port = free_port()
    settings = {"grpc_port": port, "grpc_tls_cert_file": str(cert), "grpc_tls_key_file": str(key)}
    trusted = grpc.ssl_channel_credentials(cert.read_bytes())
    async with called(answering({}), **settings) as (plain, _):
        async with grpc.aio.secure_channel(f"localhost:{port}", trusted) as channel:
            assert await method(channel, "Complete")(HELLO) == pb.CompleteResponse()
        with pytest.raises(grpc.aio.AioRpcError):
            await method(plain, "Complete")(HELLO)


async def test_each_chunk_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[int] = []
    made = answers.complete_piece
    monkeypatch.setattr(answers, "complete_piece", lambda messages: pieces.append(len(messages)) or made(messages))
    token = event(choices=[{"index": 0, "text": "a"}])
    async with called(streaming(token, token * 3, token)) as (channel, _):
        seen = [len(piece.deltas) async for piece in method(channel, "StreamComplete")(HELLO)]
    assert seen == pieces == [1, 3, 1]
