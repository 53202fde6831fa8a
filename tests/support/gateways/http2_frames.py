"""Frames of HTTP/2 by hand, for what no client library does: floods of pings, of streams that are reset, of headers."""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS = 1, 4
CANCEL = struct.pack(">I", 8)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(fields: dict[str, str]) -> bytes:
    """Return a block of headers, each as a literal that is not indexed."""
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields.items())


def call_headers(path: str, **more: str) -> bytes:
    """Return the headers of a call of gRPC."""
    begin = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "a"}
    return headers(begin | {"content-type": "application/grpc", "te": "trailers"} | more)


def _text(text: str) -> bytes:
    raw = text.encode()
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, length = len(raw) - 127, bytearray([127])
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    length.append(rest)
    return bytes(length) + raw
