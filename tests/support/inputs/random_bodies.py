"""Random bodies of requests, seeded: known fields with any values, JSON that was changed, and bytes that are none."""

import json
import random
from typing import Any

from sparktier.serving.gateway.requests.rules import CHAT, PATHS, fields_of

_TEXTS = ("", "a", "user", "text", "json_schema", "tiny", "auto", "\x00", "\ud800", "é" * 40, "1e999", "*" * 300)
_NUMBERS = (0, -1, 1, 2, 0.5, -0.0, 1e308, 2**31, 2**63, -(2**70), 10**400)
_KEYS = ("a", "role", "content", "type", "function", "name", "schema", "json_schema", "text", "parameters", "0", "511")


def random_body(rng: random.Random) -> tuple[str, bytes]:
    """Return a path and a body for it."""
    path = rng.choice(PATHS)
    kind = rng.random()
    if kind < 0.05:
        return path, rng.randbytes(rng.randrange(200))
    if kind < 0.08:
        return path, rng.choice([b"[", b'{"a":', b'{"prompt":[', b"-", b'"']) * rng.randrange(1, 3000)
    raw = json.dumps(_fields(path, rng)).encode()
    return path, raw if kind < 0.75 else _changed(raw, rng)


def _fields(path: str, rng: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"prompt": "Hi"}
    names = sorted(fields_of(path))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 6))):
        name = rng.choice(names) if rng.random() < 0.95 else rng.choice(_TEXTS)
        body[name] = _value(rng, depth=rng.randrange(4))
    if rng.random() < 0.1:
        del body[rng.choice(list(body))]
    return body


def _value(rng: random.Random, *, depth: int) -> Any:
    if depth == 0 or rng.random() < 0.3:
        return rng.choice((None, True, False, rng.choice(_TEXTS), rng.choice(_NUMBERS), rng.randrange(-3, 600)))
    items = rng.randrange(4)
    if rng.random() < 0.5:
        return [_value(rng, depth=depth - 1) for _ in range(items)]
    return {rng.choice(_KEYS): _value(rng, depth=depth - 1) for _ in range(items)}


def _changed(raw: bytes, rng: random.Random) -> bytes:
    """Return `raw` with bytes changed, taken out, doubled or cut off."""
    found = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(found) + 1)
        change = rng.randrange(4)
        if change == 0:
            found[place:] = b""
        elif change == 1:
            found[place : place + rng.randrange(8)] = rng.randbytes(rng.randrange(3))
        elif change == 2:
            found[place:place] = found[: rng.randrange(40)]
        elif found:
            found[place % len(found)] ^= 1 << rng.randrange(8)
    return bytes(found)
