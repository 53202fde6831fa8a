"""Finds the lines of a process's log that say why it ended.

SGLang and Ray print hundreds of warnings, and one error through many layers, so the last lines seldom say it.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

# A log of days is large, and the reason of the end is near its end.
_TAIL_BYTES = 256 << 10
_READ_CHARACTERS = 1000
_MAX_LINES = 4
_MAX_CHARACTERS = 250
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Ray marks each line that a worker printed, and lines it has seen before.
_RAY_MARKS = re.compile(r"^\([^)]*pid=[^)]*\) |\s*\[repeated \d+x across cluster\].*$")
_STAMP = re.compile(r"^(?:\[\d{4}-\d\d-\d\d [^\]]*\]|\d{4}-\d\d-\d\d \S+)\s*(?:(?:INFO|WARNING|ERROR) )?")
# The last line of a traceback, however deep the module, and the lines that end a process without one.
_ERROR = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Failure|Died|Exit)\b(?:\([^)]*\))?:? ?.*")
_FATAL = re.compile(
    r"^(?:replica \d+: |sparktier: |Fatal|Aborted|Segmentation fault|Killed|The actor is dead|.*[Oo]ut of memory)"
)
_SAYS_NOTHING = re.compile(r"Traceback \(most recent call last\)|Triggered after fatal|^\w+\.RayActorError: *$")


def reason_in(log_file: Path, *, start: int) -> list[str]:
    """Return the few most telling lines of the file `log_file` from byte `start` on, and a line that names the file."""
    try:
        with log_file.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError as error:
        return [f"(its log, {log_file}, can't be read: {error.strerror})"]
    return [*reason(text), f"(all of it in {log_file})"]


def reason(log: str) -> list[str]:
    """Return the few most telling lines of `log`, oldest first: errors if there are any, else its last lines."""
    lines = [plain for line in log.splitlines() if (plain := _plain(line[:_READ_CHARACTERS]))]
    errors = [line for line in lines if _ERROR.match(line) or _FATAL.match(line)]
    told = [line for line in _once(errors) if not _SAYS_NOTHING.search(line)]
    return [line[:_MAX_CHARACTERS] for line in (told or _once(lines))[-_MAX_LINES:]]


def _plain(line: str) -> str:
    return _STAMP.sub("", _RAY_MARKS.sub("", _COLOUR.sub("", line))).rstrip()


def _once(lines: Iterable[str]) -> list[str]:
    """Return each of `lines` once, in the order of their last mentions, which are nearest to the end."""
    return list(reversed(dict.fromkeys(reversed(list(lines)))))
