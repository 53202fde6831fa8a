"""Reads JSON strictly and measures JSON values: the text in them, and their lists and objects."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from pydantic_core import from_json

# Each takes 4 us, in the event loop that serves all requests.
MAX_CONTAINERS = 1 << 15
_SHOWN_CHARACTERS = 200
# Linear in every input: an unfinished string ends with the text.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)', re.DOTALL)
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1

JsonPath = tuple[str | int, ...]


class BadValue(ValueError):
    """A value in JSON that breaks a rule; `path` leads to it, with dots."""

    def __init__(self, path: JsonPath, rule: str) -> None:
        self.path = ".".join(map(str, path))[:_SHOWN_CHARACTERS]
        super().__init__(f"{self.path}: {rule}." if self.path else f"{rule}.")


class _Repeated:
    """Stands in for an object that names `key` twice."""

    def __init__(self, key: str) -> None:
        self.key = key


def strict_json(raw: bytes | str) -> Any:
    """Return the value that `raw` holds.

    Raises:
        BadValue: it holds an infinite number, a whole number above 64 bits, a key twice, or too many lists and objects.
        ValueError: it is no JSON, too deep, or no Unicode.
    """
    _check_brackets(raw.encode() if isinstance(raw, str) else raw)
    # This parser bounds the depth and refuses NaN and text that is no Unicode; the json module finds repeated keys.
    from_json(raw, allow_inf_nan=False)
    value = json.loads(raw, object_pairs_hook=_object)
    for path, container in containers(value):
        _check_values(path, container)
    return value


def containers(value: Any) -> Iterator[tuple[JsonPath, Any]]:
    """Yield each list and object in `value`, itself included, with its path.

    Raises BadValue when there are more than MAX_CONTAINERS.
    """
    waiting: list[tuple[JsonPath, Any]] = [((), value)]
    for _ in range(MAX_CONTAINERS):
        if not waiting:
            return
        path, container = waiting.pop()
        yield path, container
        if not _kinds(container).isdisjoint(_CONTAINERS):
            inner = (((*path, key), item) for key, item in _items(container) if isinstance(item, _CONTAINERS))
            waiting += islice(inner, MAX_CONTAINERS - len(waiting))
    if waiting:
        raise _too_many()


def characters(value: Any, *, most: int) -> int:
    """Return how many characters of text `value` holds, keys and numbers included; stops counting above `most`."""
    total, waiting = 0, [value]
    while waiting and total <= most:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, list) and not _kinds(item).isdisjoint((str, *_CONTAINERS)):
            waiting += item
        else:  # text, a number, or a list of numbers, which is long where it is an attack
            total += len(item if isinstance(item, str) else str(item))
    return total


_CONTAINERS = (dict, list, _Repeated)


def _too_many() -> BadValue:
    return BadValue((), f"JSON must have at most {MAX_CONTAINERS} lists and objects")


def _check_brackets(raw: bytes) -> None:
    """Raise BadValue before a million lists and objects are made, which takes seconds."""
    if raw.count(b"[") + raw.count(b"{") > MAX_CONTAINERS:
        outside = _STRING.sub(b"", raw)
        if outside.count(b"[") + outside.count(b"{") > MAX_CONTAINERS:
            raise _too_many()


def _object(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeated(Counter(key for key, _ in pairs).most_common(1)[0][0])


def _values(container: Any) -> Collection[Any]:
    if isinstance(container, dict):
        return container.values()
    return container if isinstance(container, list) else ()


def _items(container: Any) -> Iterator[tuple[str | int, Any]]:
    return iter(container.items()) if isinstance(container, dict) else enumerate(_values(container))


def _kinds(container: Any) -> set[type]:
    return set(map(type, _values(container)))


def _check_values(path: JsonPath, container: Any) -> None:
    if isinstance(container, _Repeated):
        raise BadValue((*path, container.key), "must be given once")
    kinds = _kinds(container)
    numbers = _values(container)
    # Token ids are millions: built-in functions look at them ten times as fast as the loop below.
    if kinds == {int} and min(numbers) >= _SMALLEST and max(numbers) <= _LARGEST:
        return
    if kinds.isdisjoint((int, float)):
        return
    for key, item in _items(container):
        if type(item) is float and not math.isfinite(item):
            raise BadValue((*path, key), "must be a number that 64 bits can hold, this one is infinite in them")
        if type(item) is int and not _SMALLEST <= item <= _LARGEST:
            raise BadValue((*path, key), "must be a whole number of 64 bits at most")
