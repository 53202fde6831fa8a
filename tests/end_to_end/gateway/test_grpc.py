"""gRPC beside HTTP on one deployment: the same tokens, tiers and refusals, and a cancelled call frees the engine."""

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sparktier.serving.gateway.grpc.service import SERVICE
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from support.deployment import CLIENT_KEY, MODEL, SHOWN, Deployment, wait_until
from support.gateways.grpc_calls import method, reason_of
from support.inputs.tenants import OTHER_KEY

PROMPT = "One two three four"
MESSAGES = [{"role": "user", "content": "Name three rivers."}]
GREEDY = pb.Sampling(max_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def channel(drafting: Deployment) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(drafting.grpc_address) as channel:
        yield channel


def shown(key: str = CLIENT_KEY, **metadata: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"), *metadata.items())


def over_http(deployment: Deployment, path: str, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "max_tokens": 12, "temperature": 0.0, **fields}
    answer = httpx.post(deployment.url + path, json=body, headers=SHOWN, timeout=120.0)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_completions_have_the_tokens_of_http(drafting: Deployment, channel: grpc.Channel) -> None:
    expected = over_http(drafting, "/v1/completions", prompt=PROMPT)
    asked = pb.CompleteRequest(prompts=[pb.Prompt(text=PROMPT)], sampling=GREEDY, tier="gold")
    call = method(channel, "Complete").with_call(asked, metadata=shown(), timeout=120)
    whole, facts = call
    pieces = list(method(channel, "StreamComplete")(asked, metadata=shown(), timeout=120))
    text = expected["choices"][0]["text"]
    assert whole.choices[0].text == text
    assert "".join(delta.text for piece in pieces for delta in piece.deltas) == text
    assert dict(facts.initial_metadata())["x-sparktier-tier"] == "gold"
    for usage in (whole.usage, pieces[-1].usage):
        assert (usage.tier, usage.completion_tokens) == ("gold", expected["usage"]["completion_tokens"])
        assert usage.accepted_length_tokens >= 1
        assert usage.attained_tok_s > 0
        assert usage.ttft_ms > 0


def test_chats_have_the_tokens_of_http(drafting: Deployment, channel: grpc.Channel) -> None:
    expected = over_http(drafting, "/v1/chat/completions", messages=MESSAGES, logprobs=True)["choices"][0]
    asked = pb.ChatRequest(messages=[pb.ChatMessage(**MESSAGES[0])], sampling=GREEDY, logprobs=True)
    whole = method(channel, "Chat")(asked, metadata=shown(), timeout=120)
    pieces = list(method(channel, "StreamChat")(asked, metadata=shown(), timeout=120))
    said = "".join(delta.message.content for piece in pieces for delta in piece.deltas)
    assert whole.choices[0].message.content == said == expected["message"]["content"]
    assert [token.token for token in whole.choices[0].logprobs] == [
        token["token"] for token in expected["logprobs"]["content"]
    ]
    assert whole.usage.tier == pieces[-1].usage.tier == "standard"


def test_keys_and_tiers_are_asked_for(channel: grpc.Channel) -> None:
    asked = pb.CompleteRequest(prompts=[pb.Prompt(text="a")], tier="none")
    for metadata, code, reason in (
        ((), grpc.StatusCode.UNAUTHENTICATED, "missing_api_key"),
        (shown("wrong"), grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key"),
        (shown(), grpc.StatusCode.INVALID_ARGUMENT, "unknown_tier"),
        (shown(OTHER_KEY), grpc.StatusCode.INVALID_ARGUMENT, "unknown_tier"),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            method(channel, "Complete")(asked, metadata=metadata, timeout=120)
        assert (failed.value.code(), reason_of(failed.value)) == (code, reason)


@pytest.mark.parametrize("ending", ["cancel", "deadline"])
def test_a_call_that_ends_early_frees_the_engine(drafting: Deployment, channel: grpc.Channel, ending: str) -> None:
    sampling = pb.Sampling(max_tokens=4000, ignore_eos=True)
    asked = pb.CompleteRequest(prompts=[pb.Prompt(text=PROMPT)], sampling=sampling)
    call = method(channel, "StreamComplete")(asked, metadata=shown(), timeout=3 if ending == "deadline" else 120)
    assert next(call).deltas
    if ending == "cancel":
        assert drafting.running_requests() == 1
        call.cancel()
    with pytest.raises(grpc.RpcError) as failed:
        list(call)
    expected = grpc.StatusCode.CANCELLED if ending == "cancel" else grpc.StatusCode.DEADLINE_EXCEEDED
    assert failed.value.code() is expected
    wait_until(lambda: drafting.running_requests() == 0, timeout_s=30, what=lambda: "the engine to be free")


def test_health_says_that_it_serves(channel: grpc.Channel) -> None:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
