"""From an answer of the core, whole or in pieces, to the messages of `sparktier.v1`. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb

Answer = Mapping[str, Any]


def chat_response(answer: Answer) -> pb.ChatResponse:
    """Return a whole chat."""
    choices = [
        pb.ChatChoice(
            index=choice.get("index", 0),
            message=_said(choice.get("message") or {}),
            finish_reason=choice.get("finish_reason") or "",
            logprobs=_chat_logprobs(choice),
        )
        for choice in answer.get("choices", ())
    ]
    return pb.ChatResponse(**_head(answer), choices=choices, usage=_usage(answer))


def chat_piece(messages: Sequence[Answer]) -> pb.StreamChatResponse:
    """Return the `messages` of one chunk as one piece."""
    deltas = [
        pb.ChatDelta(
            index=choice.get("index", 0),
            message=_said(choice.get("delta") or {}),
            finish_reason=choice.get("finish_reason"),
            logprobs=_chat_logprobs(choice),
        )
        for message in messages
        for choice in message.get("choices", ())
    ]
    return pb.StreamChatResponse(**_head(messages[-1]), deltas=deltas, usage=_usage(messages[-1]))


def complete_response(answer: Answer) -> pb.CompleteResponse:
    """Return a whole completion."""
    return pb.CompleteResponse(**_head(answer), choices=map(_completed, _choices([answer])), usage=_usage(answer))


def complete_piece(messages: Sequence[Answer]) -> pb.StreamCompleteResponse:
    """Return the `messages` of one chunk as one piece."""
    last = messages[-1]
    return pb.StreamCompleteResponse(**_head(last), deltas=map(_completed, _choices(messages)), usage=_usage(last))


def _choices(messages: Sequence[Answer]) -> Iterator[Mapping[str, Any]]:
    return (choice for message in messages for choice in message.get("choices", ()))


def _head(answer: Answer) -> dict[str, Any]:
    return {name: value for name in ("id", "model", "created") if (value := answer.get(name))}


def _said(message: Mapping[str, Any]) -> pb.ChatMessage:
    return pb.ChatMessage(
        role=message.get("role") or "",
        content=message.get("content"),
        reasoning_content=message.get("reasoning_content"),
        tool_calls=map(_tool_call, message.get("tool_calls") or ()),
    )


def _tool_call(call: Mapping[str, Any]) -> pb.ToolCall:
    function = call.get("function") or {}
    return pb.ToolCall(
        index=call.get("index") or 0,
        id=call.get("id") or "",
        name=function.get("name") or "",
        arguments=function.get("arguments") or "",
    )


def _completed(choice: Mapping[str, Any]) -> pb.CompleteChoice:
    return pb.CompleteChoice(
        index=choice.get("index", 0),
        text=choice.get("text") or "",
        finish_reason=choice.get("finish_reason"),
        logprobs=_complete_logprobs(choice.get("logprobs") or {}),
    )


def _chat_logprobs(choice: Mapping[str, Any]) -> list[pb.TokenLogprob]:
    return [
        pb.TokenLogprob(
            token=entry["token"],
            logprob=entry["logprob"],
            top=[pb.TopLogprob(token=top["token"], logprob=top["logprob"]) for top in entry.get("top_logprobs") or ()],
        )
        for entry in (choice.get("logprobs") or {}).get("content") or ()
    ]


def _complete_logprobs(logprobs: Mapping[str, Any]) -> list[pb.TokenLogprob]:
    tokens = logprobs.get("tokens") or ()
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    return (
        [
            pb.TokenLogprob(
                token=token or "",
                logprob=logprob,
                text_offset=offset,
                top=[pb.TopLogprob(token=name, logprob=value) for name, value in (top or {}).items()],
            )
            for token, logprob, offset, top in zip(
                tokens, logprobs["token_logprobs"], logprobs["text_offset"], tops, strict=True
            )
        ]
        if tokens
        else []
    )


def _usage(answer: Answer) -> pb.Usage | None:
    usage = answer.get("usage")
    if not isinstance(usage, Mapping):
        return None
    served = usage.get("sparktier") or {}
    return pb.Usage(
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        total_tokens=usage.get("total_tokens") or 0,
        tier=served.get("tier") or "",
        attained_tok_s=served.get("attained_tok_s"),
        ttft_ms=served.get("ttft_ms"),
        accepted_length_tokens=served.get("accepted_length"),
        rounds=served.get("rounds") or 0,
        rows_verified=served.get("rows_verified") or 0,
    )
