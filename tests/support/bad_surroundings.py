"""Surroundings and files with which a command can't do its work, each with the words that its one line must have.

A row makes its files in an empty folder and returns the command line. Add rows to `ROWS`; the test that runs them is
`tests/serving/test_bad_surroundings.py`.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DEMO = str(CONFIGS / "demo.yaml")


@dataclass
class Place:
    """Where a row is tried: an empty folder, and changes of the environment (None removes a variable)."""

    folder: Path
    env: dict[str, str | None] = field(default_factory=dict)

    def file(self, name: str, content: str | bytes = "") -> Path:
        """Write a file, its folders included, and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def config(self, text: str) -> str:
        """Write a configuration file of `text` and return its path."""
        return str(self.file("config.yaml", text))


@dataclass(frozen=True)
class Row:
    """One bad surrounding: `make` prepares it and returns the command line, `says` are words of the one line."""

    name: str
    make: Callable[[Place], Sequence[str]]
    says: Sequence[str]
    in_own_process: bool = False
    """Needed where the command would change the process, as a mount or a signal handler does."""


def _up(*settings: str) -> Callable[[Place], Sequence[str]]:
    return lambda place: ["up", DEMO, *(f"--set={setting}" for setting in settings)]


def _config(content: str | bytes) -> Callable[[Place], Sequence[str]]:
    return lambda place: ["up", str(place.file("config.yaml", content))]


def _config_is_a_folder(place: Place) -> Sequence[str]:
    (place.folder / "config.yaml").mkdir()
    return ["up", str(place.folder / "config.yaml")]


def _port_in_use(place: Place) -> Sequence[str]:
    # Kept open for as long as the tests run.
    _OPEN.append(listener := socket.create_server(("127.0.0.1", 0)))
    return _up("server.host=127.0.0.1", f"server.port={listener.getsockname()[1]}")(place)


_OPEN: list[socket.socket] = []

# What a start meets.
_STARTS = [
    Row("no config file", lambda place: ["up", str(place.folder / "none.yaml")], ["No such file", "Check the path"]),
    Row("config file is a folder", _config_is_a_folder, ["Is a directory", "Check the path"]),
    Row("config file is not UTF-8", _config(b"model: {path: demo} # \xff\n"), ["not UTF-8"]),
    Row("port in use", _port_in_use, ["server.port", "in use", "another port"]),
    Row("host of nobody", _up("server.host=192.0.2.1"), ["server.port", "192.0.2.1"]),
]


def _report(command: Sequence[str], path: str) -> Callable[[Place], Sequence[str]]:
    """Return what asks for a report inside the folder, where "file" and "pipe" are no folders."""

    def make(place: Place) -> Sequence[str]:
        place.file("file", "mine")
        os.mkfifo(place.folder / "pipe")
        return [*command, "--json", str(place.folder / path)]

    return make


_PLAN = ["doctor", "--plan", str(CONFIGS / "deployments" / "qwen3-235b-a22b-8xh200.yaml")]
_BENCH = ["bench", "speculation", DEMO, "--prompts", "none.jsonl"]
_EVALUATE = ["evaluate", DEMO, "--prompts", "none.jsonl"]

# Reports that can't be written are refused before the work.
_REPORTS = [
    Row("report is a folder", _report(_PLAN, "."), ["--json", "must be a file", "another"]),
    Row("report is a pipe", _report(_PLAN, "pipe"), ["--json", "must be a file", "pipe", "another"]),
    Row("report below a file", _report(_BENCH, "file/a.json"), ["--json", "Not a directory", "another"]),
    Row("report's name is too long", _report(_EVALUATE, "a" * 300), ["--json", "File name too long", "another"]),
    Row("report in the kernel's folder", _report(_EVALUATE, "/proc/a.json"), ["--json", "/proc/a.json", "another"]),
]

ROWS: list[Row] = [*_STARTS, *_REPORTS]


def environment(place: Place) -> dict[str, str]:
    """Return this process's environment with the changes of `place`."""
    merged = {**os.environ, **place.env}
    return {name: value for name, value in merged.items() if value is not None}
