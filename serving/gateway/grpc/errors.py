"""Refusals as gRPC's rich errors: a status, the HTTP API's code in an ErrorInfo, the field at fault, when to retry."""

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from sparktier.serving.gateway.refused import Refused

DOMAIN = "sparktier"
DETAILS = "grpc-status-details-bin"
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: Refused) -> grpc.StatusCode:
    """Return the status code of `error`."""
    other = grpc.StatusCode.INTERNAL if error.status >= 500 else grpc.StatusCode.INVALID_ARGUMENT
    return _CODES.get(error.status, other)


def details_of(error: Refused) -> bytes:
    """Return the value of the trailing metadata `grpc-status-details-bin`, a google.rpc.Status."""
    facts = {} if error.param is None else {"param": error.param}
    info = error_details_pb2.ErrorInfo(reason=(error.code or "invalid_value").upper(), domain=DOMAIN, metadata=facts)
    details: list[Message] = [info]
    if error.param is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.param, description=str(error))
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = error.retry_after_s
        details.append(retry)
    status = status_pb2.Status(code=code_of(error).value[0], message=str(error), details=map(_packed, details))
    return bytes(status.SerializeToString())


def _packed(detail: Message) -> any_pb2.Any:
    found = any_pb2.Any()
    found.Pack(detail)
    return found
