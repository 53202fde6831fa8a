"""What clients of gRPC that are generated from the proto get; run in their own environment against SPARKTIER_GRPC."""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

ADDRESS, KEY, PROTO = (os.environ[f"SPARKTIER_{name}"] for name in ("GRPC", "KEY", "PROTO"))
sys.path.append(PROTO)
pb, services = grpc.protos_and_services("sparktier/v1/inference.proto")
SERVICE = "sparktier.v1.InferenceService"
SHOWN = (("authorization", f"Bearer {KEY}"),)
MOODS = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(ADDRESS) as found:
        yield found


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return services.InferenceServiceStub(channel)


def completion(**fields: Any) -> Any:
    sampling = {"max_tokens": 16, "temperature": 0.0, **fields.pop("sampling", {})}
    return pb.CompleteRequest(prompts=[pb.Prompt(text="One two three")], sampling=pb.Sampling(**sampling), **fields)


def chat(**fields: Any) -> Any:
    # A greedy answer of the tests' model may be white space without end, which grammars of JSON allow.
    sampling = {"max_tokens": 2000, "temperature": 1.0, "seed": 1, **fields.pop("sampling", {})}
    said = pb.ChatMessage(role="user", content="Name three rivers.")
    return pb.ChatRequest(messages=[said], sampling=pb.Sampling(**sampling), **fields)


def test_a_stream_has_the_text_of_the_whole_answer_and_its_usage_at_the_end(stub: Any) -> None:
    whole = stub.Complete(completion(tier="gold"), metadata=SHOWN, timeout=180)
    pieces = list(stub.StreamComplete(completion(tier="gold"), metadata=SHOWN, timeout=180))
    assert "".join(delta.text for piece in pieces for delta in piece.deltas) == whole.choices[0].text
    for usage in (whole.usage, pieces[-1].usage):
        assert (usage.tier, usage.completion_tokens) == ("gold", 16)
    assert not any(piece.HasField("usage") for piece in pieces[:-1])


def test_choices_are_numbered_and_differ(stub: Any) -> None:
    asked = completion(sampling={"n": 3, "temperature": 1.0, "max_tokens": 24})
    answer = stub.Complete(asked, metadata=SHOWN, timeout=180)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) == 3


def test_log_probabilities_are_those_of_the_tokens(stub: Any) -> None:
    choice = stub.Complete(completion(logprobs=2), metadata=SHOWN, timeout=180).choices[0]
    assert "".join(entry.token for entry in choice.logprobs) == choice.text
    assert all(len(entry.top) == 2 and entry.logprob == entry.top[0].logprob for entry in choice.logprobs)


def test_a_seed_fixes_what_is_sampled(stub: Any) -> None:
    texts = []
    for seed in (7, 7, 8):
        asked = completion(sampling={"temperature": 1.0, "max_tokens": 32, "seed": seed})
        texts.append(stub.Complete(asked, metadata=SHOWN, timeout=180).choices[0].text)
    assert texts[0] == texts[1] != texts[2]


def test_output_follows_a_json_schema(stub: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "report", "schema": MOODS}}
    asked = chat(sampling={"response_format_json": json.dumps(form)})
    answer = stub.Chat(asked, metadata=SHOWN, timeout=180)
    assert json.loads(answer.choices[0].message.content)["mood"] in ("good", "bad")


def test_a_required_tool_is_called_whole_and_streamed(stub: Any) -> None:
    tools = json.dumps([{"type": "function", "function": {"name": "scold", "parameters": MOODS}}])
    asked = chat(tools_json=tools, tool_choice_json='"required"', parallel_tool_calls=False)
    choice = stub.Chat(asked, metadata=SHOWN, timeout=180).choices[0]
    deltas = [delta for piece in stub.StreamChat(asked, metadata=SHOWN, timeout=180) for delta in piece.deltas]
    calls = [call for delta in deltas for call in delta.message.tool_calls]
    [call] = choice.message.tool_calls
    for name, arguments in ((call.name, call.arguments), (calls[0].name, "".join(each.arguments for each in calls))):
        assert name == "scold"
        assert json.loads(arguments)["mood"] in ("good", "bad")
    assert choice.finish_reason == deltas[-1].finish_reason == "tool_calls"


def test_refusals_have_rich_errors(stub: Any) -> None:
    for asked, metadata, code, reason in (
        (completion(), (), grpc.StatusCode.UNAUTHENTICATED, "MISSING_API_KEY"),
        (completion(tier="none"), SHOWN, grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_TIER"),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            stub.Complete(asked, metadata=metadata, timeout=180)
        assert failed.value.code() is code
        status, info = rpc_status.from_call(failed.value), error_details_pb2.ErrorInfo()
        assert any(detail.Unpack(info) for detail in status.details)
        assert (info.domain, info.reason) == ("sparktier", reason)


def test_a_call_that_is_cancelled_is_over(stub: Any) -> None:
    call = stub.StreamComplete(completion(sampling={"max_tokens": 4000, "ignore_eos": True}), metadata=SHOWN)
    assert next(call).deltas
    call.cancel()
    with pytest.raises(grpc.RpcError) as failed:
        list(call)
    assert failed.value.code() is grpc.StatusCode.CANCELLED


def test_a_call_beyond_its_deadline_is_over(stub: Any) -> None:
    asked = completion(sampling={"max_tokens": 8000, "ignore_eos": True})
    with pytest.raises(grpc.RpcError) as failed:
        list(stub.StreamComplete(asked, metadata=SHOWN, timeout=2))
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_says_that_it_serves(channel: grpc.Channel, service: str) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    asked = health_pb2.HealthCheckRequest(service=service)
    assert health.Check(asked, timeout=60).status == health_pb2.HealthCheckResponse.SERVING
    assert next(iter(health.Watch(asked, timeout=60))).status == health_pb2.HealthCheckResponse.SERVING


def test_a_client_that_knows_only_what_reflection_tells_is_answered(channel: grpc.Channel) -> None:
    told = ProtoReflectionDescriptorDatabase(channel)
    assert set(told.get_services()) >= {SERVICE, "grpc.health.v1.Health"}
    method = descriptor_pool.DescriptorPool(told).FindServiceByName(SERVICE).methods_by_name["Complete"]
    asked, answer = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
    call = channel.unary_unary(
        f"/{SERVICE}/Complete", request_serializer=asked.SerializeToString, response_deserializer=answer.FromString
    )
    body = {"prompts": [{"text": "One two"}], "sampling": {"maxTokens": 4, "ignoreEos": True}}
    found = call(json_format.ParseDict(body, asked()), metadata=SHOWN, timeout=180)
    assert found.usage.completion_tokens == 4
