"""Reads public traces of requests: Azure's CSV, BurstGPT's CSV, and Mooncake's JSON lines. None of them has texts."""

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparktier.cluster.traffic.requests import PREFIX_BLOCK_TOKENS, Requests
from sparktier.configs.errors import ArtifactError
from sparktier.configs.json_lines import objects_in, read_lines, shown

_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURSTGPT = ("Timestamp", "Request tokens", "Response tokens")
_SESSION = "Session ID"
_WHAT = "a trace"
_FORMS = f"Azure's ({', '.join(_AZURE)}) or BurstGPT's ({', '.join(_BURSTGPT)})"
# What no model's prompt or answer reaches; beyond it a column has been mistaken for another.
_MOST_TOKENS = 1 << 24


class _Line(NamedTuple):
    at_ms: float
    prompt_tokens: int
    output_tokens: int
    session: str | None = None
    prefix: tuple[int, ...] = ()


def read_trace(path: Path) -> Requests:
    """Read a trace; a name that ends in `.jsonl` is Mooncake's form, another is CSV, whose header tells which.

    The first request is at 0, and the span ends a mean gap after the last one. BurstGPT's failed requests, those
    without an answer, are left out: how much they asked for isn't known.

    Raises:
        ArtifactError: the file can't be read, a line breaks a rule, or no request is left; it is named.
    """
    lines = list(_mooncake(path) if path.suffix == ".jsonl" else _csv(path))
    if len(lines) < 2 or (span_ms := max(each.at_ms for each in lines) - min(each.at_ms for each in lines)) <= 0:
        raise ArtifactError(
            f"{path}: {_WHAT} must have requests at two times at least (found {len(lines)} requests). Name another."
        )
    lines.sort(key=lambda line: line.at_ms)
    sessions: dict[object, int] = {}
    for number, line in enumerate(lines):
        sessions.setdefault(number if line.session is None else line.session, len(sessions))
    named = [sessions[number if line.session is None else line.session] for number, line in enumerate(lines)]
    at_ms = np.array([line.at_ms for line in lines])
    return Requests(
        at_ms=at_ms - at_ms[0],
        prompt_tokens=np.array([line.prompt_tokens for line in lines], dtype=np.int64),
        output_tokens=np.array([line.output_tokens for line in lines], dtype=np.int64),
        session=np.array(named, dtype=np.int64),
        prefixes=[line.prefix for line in lines],
        span_ms=span_ms * len(lines) / (len(lines) - 1),
    )


def _csv(path: Path) -> Iterator[_Line]:
    rows = _rows(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    parse = _azure if set(_AZURE) <= set(header) else _burstgpt if set(_BURSTGPT) <= set(header) else None
    if parse is None:
        raise ArtifactError(
            f"{path}:1: {_WHAT} in CSV must have the columns of {_FORMS} (found {shown(','.join(header))}). "
            "Restore the header, or name a file of Mooncake's form .jsonl."
        )
    for number, row in rows:
        where = f"{path}:{number}"
        if len(row) != len(header):
            raise _broken(where, f"a line must have {len(header)} columns, as its header", row)
        if (line := parse(dict(zip(header, row, strict=True)), where)) is not None:
            yield line


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file that are not blank, with the numbers of their lines."""
    rows = csv.reader(read_lines(path, _WHAT))
    try:
        yield from ((rows.line_num, row) for row in rows if row)
    except csv.Error as error:
        raise _broken(f"{path}:{rows.line_num}", f"a line must be CSV: {error}", "another") from None


def _azure(row: Mapping[str, str], where: str) -> _Line:
    time, prompt, output = (row[name] for name in _AZURE)
    try:
        at = datetime.fromisoformat(time)
    except ValueError:
        raise _broken(where, f"{_AZURE[0]} must be a time, as 2023-11-16 18:17:03.97", time) from None
    # Only differences matter: a time without a zone is taken for UTC.
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return _Line(at.timestamp() * 1000.0, _tokens(prompt, _AZURE[1], where), _tokens(output, _AZURE[2], where))


def _burstgpt(row: Mapping[str, str], where: str) -> _Line | None:
    time, prompt, output = (row[name] for name in _BURSTGPT)
    if output == "0":
        return None
    return _Line(
        1000.0 * _number(_parsed(time, float), _BURSTGPT[0], "seconds", where),
        _tokens(prompt, _BURSTGPT[1], where),
        _tokens(output, _BURSTGPT[2], where),
        session=row.get(_SESSION) or None,
    )


def _mooncake(path: Path) -> Iterator[_Line]:
    for where, row in objects_in(read_lines(path, _WHAT), path):
        prompt = _tokens(row.get("input_length"), "input_length", where)
        prefix = row.get("hash_ids", [])
        if not isinstance(prefix, list) or not all(type(each) is int and each >= 0 for each in prefix):
            raise _broken(where, "hash_ids must be a list of whole numbers", prefix)
        if len(prefix) > -(-prompt // PREFIX_BLOCK_TOKENS):
            rule = f"hash_ids must be of blocks of {PREFIX_BLOCK_TOKENS} tokens, no more than its input_length has"
            raise _broken(where, rule, f"{len(prefix)} for {prompt} tokens")
        yield _Line(
            _number(row.get("timestamp"), "timestamp", "milliseconds", where),
            prompt,
            _tokens(row.get("output_length"), "output_length", where),
            prefix=tuple(prefix),
        )


def _parsed(text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        return text


def _number(value: object, name: str, unit: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise _broken(where, f"{name} must be a number of {unit}, 0 or more", value)
    return float(value)


def _tokens(value: object, name: str, where: str) -> int:
    found = _parsed(value, int) if isinstance(value, str) else value
    if type(found) is not int or not 1 <= found <= _MOST_TOKENS:
        raise _broken(where, f"{name} must be a whole number from 1 to {_MOST_TOKENS}", value)
    return found


def _broken(where: str, rule: str, found: object) -> ArtifactError:
    return ArtifactError(f"{where}: {rule} (found {shown(found)}). Mend or delete the line.")
