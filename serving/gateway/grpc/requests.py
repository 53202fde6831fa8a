"""From a message of `sparktier.v1` to the body that the HTTP API has for the same request. Pure."""

from collections.abc import Iterable, Sized
from typing import Any

from google.protobuf.message import Message

from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.requests.fields import MAX_CHOICES
from sparktier.serving.gateway.requests.values import MAX_CONTAINERS, BadValue, strict_json

# Taken as they are, where they are set.
_SAMPLING = (
    "n", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "seed", "skip_special_tokens", "regex", "ebnf",
)  # fmt: skip
# Where they are not empty.
_SAMPLING_FILLED = ("ignore_eos", "no_stop_trim", "cache_salt", "user")


def chat_body(request: pb.ChatRequest, *, stream: bool) -> dict[str, Any]:
    """Return the body of a chat. Raises Refused where a field holds no JSON, or too much is repeated."""
    _few(request.messages, "messages", MAX_CONTAINERS)
    _few([call for message in request.messages for call in message.tool_calls], "tool_calls", MAX_CONTAINERS)
    body = _shared(request.model, request.sampling, stream=stream)
    body["messages"] = [_chat_message(message) for message in request.messages]
    for name in ("tools", "tool_choice", "chat_template_kwargs"):
        if text := getattr(request, f"{name}_json"):
            body[name] = _json(text, f"{name}_json")
    body |= _set(request, ("parallel_tool_calls", "top_logprobs", "separate_reasoning"))
    body |= _filled(request, ("logprobs", "reasoning_effort"))
    return body


def complete_body(request: pb.CompleteRequest, *, stream: bool) -> dict[str, Any]:
    """Return the body of a completion. Raises Refused where prompts are of two kinds, or too much is repeated."""
    _few(request.prompts, "prompts", MAX_CHOICES)
    body = _shared(request.model, request.sampling, stream=stream)
    kinds = {prompt.WhichOneof("kind") for prompt in request.prompts}
    if kinds == {"text"}:
        body["prompt"] = [prompt.text for prompt in request.prompts]
    elif kinds == {"token_ids"}:
        body["prompt"] = [list(prompt.token_ids.ids) for prompt in request.prompts]
    else:
        raise Refused("prompts: must be texts, or all token ids. Send at least one.", param="prompts")
    if len(request.prompts) == 1:
        [body["prompt"]] = body["prompt"]
    return body | _set(request, ("logprobs",)) | _filled(request, ("echo",))


def _shared(model: str, sampling: pb.Sampling, *, stream: bool) -> dict[str, Any]:
    _few(sampling.logit_bias, "logit_bias", MAX_CONTAINERS)
    body = _set(sampling, _SAMPLING) | _filled(sampling, _SAMPLING_FILLED)
    if model:
        body["model"] = model
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    for name in ("stop", "stop_token_ids"):
        if values := list(getattr(sampling, name)):
            body[name] = values
    if sampling.response_format_json:
        body["response_format"] = _json(sampling.response_format_json, "response_format_json")
    return body | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})


def _set(message: Message, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def _filled(message: Message, names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(message, name))}


def _chat_message(message: pb.ChatMessage) -> dict[str, Any]:
    found = {"role": message.role, **_set(message, ("content", "reasoning_content"))}
    found |= _filled(message, ("name", "tool_call_id"))
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return found


def _json(text: str, name: str) -> Any:
    try:
        return strict_json(text)
    except BadValue as error:
        raise Refused(f"{name}: {error}", param=name) from error
    except ValueError as error:
        raise Refused(f"{name}: must be JSON ({error}). Correct it.", param=name) from error


def _few(items: Sized, name: str, most: int) -> None:
    """Raise Refused before a message of millions of parts is turned into Python's."""
    if len(items) > most:
        raise Refused(f"{name}: must have at most {most} entries (found {len(items)}). Send fewer.", param=name)
