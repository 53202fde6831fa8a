"""Calls of `sparktier.v1` from tests, and what rich errors say."""

import socket
from collections.abc import Sequence
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from sparktier.serving.gateway.grpc.service import SERVICE
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb

ANSWERS = {
    "Chat": pb.ChatResponse,
    "StreamChat": pb.StreamChatResponse,
    "Complete": pb.CompleteResponse,
    "StreamComplete": pb.StreamCompleteResponse,
}


def method(channel: Any, name: str) -> Any:
    """Return the method `name` of the service on `channel`, of grpc or grpc.aio."""
    kind = channel.unary_stream if name.startswith("Stream") else channel.unary_unary
    return kind(
        f"/{SERVICE}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=ANSWERS[name].FromString,
    )


def reason_of(error: grpc.RpcError) -> str:
    """Return the HTTP API's code in a rich error."""
    return str(details_of(error).ErrorInfo.reason).lower()


class Details:
    """The details of a rich error, by the names of their types."""

    def __init__(self, status: status_pb2.Status) -> None:
        self.code, self.message = status.code, status.message
        self.names: list[str] = []
        for packed in status.details:
            name = packed.type_url.rsplit(".", 1)[-1]
            found = getattr(error_details_pb2, name)()
            packed.Unpack(found)
            setattr(self, name, found)
            self.names.append(name)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def details_of(error: Any) -> Details:
    """Return the details of a rich error."""
    trailing: Sequence[tuple[str, Any]] = tuple(error.trailing_metadata())
    [raw] = [value for key, value in trailing if key == "grpc-status-details-bin"]
    status = status_pb2.Status()
    status.ParseFromString(raw)
    return Details(status)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
