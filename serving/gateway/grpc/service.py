"""The service `sparktier.v1.InferenceService` over the core: one write for each chunk of a stream."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from sparktier.serving.gateway.core import request_ids
from sparktier.serving.gateway.core.answer import Answer
from sparktier.serving.gateway.core.ask import Ask, Kind
from sparktier.serving.gateway.core.gateway import Gateway
from sparktier.serving.gateway.grpc import answers, requests
from sparktier.serving.gateway.grpc.errors import DETAILS, code_of, details_of
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.tier_resolution import ASKED_TIER_HEADER, TIER_HEADER, TPOT_HEADER, TierAsk

SERVICE = str(pb.DESCRIPTOR.services_by_name["InferenceService"].full_name)
_FAILED = "The server failed on this request. Its log says why."
_log = logging.getLogger(__name__)

Asked = TypeVar("Asked", pb.ChatRequest, pb.CompleteRequest)
Context = grpc.aio.ServicerContext[Any, Any]


def handlers(gateway: Gateway) -> grpc.GenericRpcHandler:
    """Return the methods of the service."""
    chat = _Method(gateway, Kind.CHAT, pb.ChatRequest, requests.chat_body)
    complete = _Method(gateway, Kind.COMPLETION, pb.CompleteRequest, requests.complete_body)
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Chat": _unary(chat.whole(answers.chat_response)),
            "StreamChat": _stream(chat.streamed(answers.chat_piece)),
            "Complete": _unary(complete.whole(answers.complete_response)),
            "StreamComplete": _stream(complete.streamed(answers.complete_piece)),
        },
    )


# Methods get a request's bytes, and decode them once its sender is known.
def _unary(method: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(method, None, _serialized)


def _stream(method: Any) -> Any:
    return grpc.unary_stream_rpc_method_handler(method, None, _serialized)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


class _Method(Generic[Asked]):
    """One kind of request, whole or streamed."""

    def __init__(
        self, gateway: Gateway, kind: Kind, asked: type[Asked], body_of: Callable[..., dict[str, Any]]
    ) -> None:
        self._gateway = gateway
        self._kind = kind
        self._asked: type[Asked] = asked
        self._body_of = body_of

    def whole(self, response: Callable[[Mapping[str, Any]], Message]) -> Callable[[bytes, Context], Any]:
        """Return the method that answers at once."""

        async def answered(answer: Answer, context: Context) -> Message:
            found = await answer.whole()
            return response(found)

        async def method(request: bytes, context: Context) -> Any:
            return await self._served(request, context, answered, stream=False)

        return method

    def streamed(self, piece: Callable[[Sequence[Mapping[str, Any]]], Message]) -> Callable[[bytes, Context], Any]:
        """Return the method that answers piece by piece."""

        async def answered(answer: Answer, context: Context) -> None:
            async with aclosing(answer.events()) as events:
                async for messages in events:
                    if messages:
                        await context.write(piece(messages))

        async def method(request: bytes, context: Context) -> None:
            await self._served(request, context, answered, stream=True)

        return method

    async def _served(
        self, request: bytes, context: Context, answered: Callable[[Answer, Context], Any], *, stream: bool
    ) -> Any:
        """Have the core answer; a cancelled or late call cancels this coroutine, and so the engine's request."""
        metadata = _Metadata(context.invocation_metadata())
        request_id = request_ids.kept_or_new(metadata.one(request_ids.HEADER))
        named = (request_ids.HEADER, request_id)
        answer: Answer
        try:
            ask = await self._ask(request, context, metadata, request_id, stream=stream)
            async with self._gateway.answering(ask) as answer:
                await context.send_initial_metadata((named, *_tiers(answer)))
                return await answered(answer, context)
        except Refused as error:
            refused = error
        except Exception:
            _log.exception("request %s failed", request_id)
            refused = Refused(_FAILED, status=500, code="internal_error")
        return await context.abort(code_of(refused), str(refused), (named, (DETAILS, details_of(refused))))

    async def _ask(self, raw: bytes, context: Context, metadata: "_Metadata", request_id: str, *, stream: bool) -> Ask:
        tenant = await self._gateway.authenticate(metadata.one("authorization"))
        self._gateway.require_place()
        request = self._decoded(raw)
        left_s = context.time_remaining()
        longest_s = self._gateway.server.request_timeout_s
        tier = TierAsk(
            field=request.tier if request.HasField("tier") else None,
            header=metadata.one(TIER_HEADER),
            tpot_ms=metadata.one(TPOT_HEADER),
        )
        return Ask(
            kind=self._kind,
            body=self._body_of(request, stream=stream),
            tier=tier,
            tenant=tenant,
            request_id=request_id,
            deadline_s=asyncio.get_running_loop().time() + (longest_s if left_s is None else min(left_s, longest_s)),
            traceparent=request_ids.traceparent(metadata.one("traceparent")),
        )

    def _decoded(self, raw: bytes) -> Asked:
        try:
            request = self._asked()
            request.ParseFromString(raw)
        except DecodeError as error:
            raise Refused(f"The message must be a {self._asked.DESCRIPTOR.full_name}. Send one.") from error
        return request


def _tiers(answer: Answer) -> list[tuple[str, str]]:
    """Return the metadata that tell the tier of an answer, and the one that was asked for if that is another."""
    served = [(TIER_HEADER, answer.tier)]
    return served if answer.asked_tier is None else [*served, (ASKED_TIER_HEADER, answer.asked_tier)]


class _Metadata:
    """The metadata of a call, text alone; what came several times is joined, as in HTTP."""

    def __init__(self, entries: Any) -> None:
        self._entries = [(key, value) for key, value in entries or () if isinstance(value, str)]

    def one(self, name: str) -> str | None:
        """Return the value of `name`."""
        values = [value for key, value in self._entries if key == name]
        return ", ".join(values) if values else None
