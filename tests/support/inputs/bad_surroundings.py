"""Surroundings and files with which a command can't do its work, each with the words that its one line must have.

A row makes its files in an empty folder and returns the command line. Add rows to `ROWS`; the test that runs them is
`tests/serving/cli/test_bad_surroundings.py`.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from support.namespaces import (
    PRIVILEGED_PORT,
    can_drop_rights,
    can_mount,
    has_privileged_ports,
    with_read_only,
    with_small_disk,
    without_rights,
)

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
DEMO = str(CONFIGS / "demo.yaml")


@dataclass
class Place:
    """Where a row is tried: an empty folder, and changes of the environment (None removes a variable).

    A row whose command runs in a namespace sets `wrapper`, of `support.namespaces`; it then has a process of its own.
    """

    folder: Path
    env: dict[str, str | None] = field(default_factory=dict)
    wrapper: Sequence[str] = ()

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
    possible: Callable[[], bool] = lambda: True
    """Whether this machine has such surroundings."""


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


def _with_file(command: str, setting: str) -> Callable[[Place], Sequence[str]]:
    """Return what runs the demo with a setting that names a file of the user's."""
    return lambda place: [command, DEMO, f"--set={setting.format(file=place.file('file', 'mine'))}"]


def _no_such_model(place: Place) -> Sequence[str]:
    return ["up", DEMO, f"--set=model.path={place.folder / 'none'}"]


def _config_json_is_a_folder(place: Place) -> Sequence[str]:
    (place.folder / "model" / "config.json").mkdir(parents=True)
    return ["up", DEMO, f"--set=model.path={place.folder / 'model'}"]


def _circle(place: Place) -> Sequence[str]:
    (place.folder / "a").symlink_to(place.folder / "b")
    (place.folder / "b").symlink_to(place.folder / "a")
    return ["up", DEMO, f"--set=model.path={place.folder / 'a'}"]


def _no_keys_file(place: Place) -> Sequence[str]:
    pepper = place.file("pepper", "p" * 32)
    pepper.chmod(0o600)
    return _up(f"gateway.keys_file={place.folder / 'none.yaml'}", f"gateway.pepper_file={pepper}")(place)


_WITH_KEYS = "gateway.keys_file=keys.yaml"
_OPEN: list[socket.socket] = []

# What a start meets.
_STARTS = [
    Row("no config file", lambda place: ["up", str(place.folder / "none.yaml")], ["No such file", "Check the path"]),
    Row("config file is a folder", _config_is_a_folder, ["Is a directory", "Check the path"]),
    Row("config file is not UTF-8", _config(b"model: {path: demo} # \xff\n"), ["not UTF-8"]),
    Row("port in use", _port_in_use, ["server.port", "in use", "another port"]),
    Row("host of another machine", _up(_WITH_KEYS, "server.host=192.0.2.1"), ["server.port", "192.0.2.1"]),
    Row(
        "host with too long a label",
        _up(_WITH_KEYS, f"server.host={'a' * 80}.example"),
        ["server.port", "no name of a host"],
    ),
    Row("open host without keys", _up("server.host=0.0.0.0"), ["server.host", "this machine alone", "keys_file"]),
    Row("keys without a pepper", _up(_WITH_KEYS), ["gateway.pepper_file", "SPARKTIER_PEPPER", "openssl"]),
    Row("no keys file", _no_keys_file, ["gateway.keys_file", "none.yaml", "No such file", "Check the path"]),
    Row(
        "no such model",
        _no_such_model,
        ["model.path: a local model is a directory with config.json"],
    ),
    Row(
        "attention that this device can't run",
        _up("replicas.attention_backend=flashinfer"),
        ["demo.yaml: replicas.attention_backend: must be"],
        lambda: not torch.cuda.is_available(),
    ),
    Row("model is a file", _with_file("up", "model.path={file}"), ["model.path", "Give the directory"]),
    Row("model below a file", _with_file("up", "model.path={file}/model"), ["model.path", "Give the directory"]),
    Row("model's path is too long", _up(f"model.path=/{'a' * 300}"), ["model.path", "too long", "Give the directory"]),
    Row("model of an unknown user", _up("model.path=~no-such-user/model"), ["no-such-user", "Write it out"]),
    Row("model's path with a null", _up('model.path="/a\\0b"'), ["model.path", "control characters"]),
    Row("model's config is a folder", _config_json_is_a_folder, ["model.path", "Give the directory"]),
    Row("draft is a file", _with_file("up", "speculation.draft_path={file}"), ["speculation.draft_path", "directory"]),
    Row("links in a circle", _circle, ["model.path", "Give the directory"]),
]


def _in_cache(make: Callable[[Path], Sequence[str]]) -> Callable[[Place], Sequence[str]]:
    """Return what starts the demo model, which is not built, with the cache that `make` prepares at a path."""

    def made(place: Place) -> Sequence[str]:
        cache = place.folder / "cache"
        place.wrapper = make(cache)
        place.env = {"SPARKTIER_CACHE": str(cache)}
        return ["up", DEMO]

    return made


def _folder(wrapper: Callable[[Path], Sequence[str]], mode: int = 0o755) -> Callable[[Path], Sequence[str]]:
    def make(cache: Path) -> Sequence[str]:
        cache.mkdir(mode=mode)
        return wrapper(cache)

    return make


def _file(cache: Path) -> Sequence[str]:
    cache.write_text("mine")
    return ()


def _dangling(cache: Path) -> Sequence[str]:
    cache.symlink_to(cache.parent / "none")
    return ()


def _no_home(place: Place) -> Sequence[str]:
    place.env = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "SPARKTIER_CACHE"))
    place.wrapper = without_rights(user=54321)
    return ["up", DEMO]


_CURE = "set SPARKTIER_CACHE"
_CACHES = [
    Row("cache is a file", _in_cache(_file), ["Not a directory", _CURE]),
    Row("cache is a link to nothing", _in_cache(_dangling), ["No such file", _CURE]),
    Row("cache is read-only", _in_cache(_folder(with_read_only)), ["Read-only file system", _CURE], can_mount),
    Row("cache is full", _in_cache(_folder(lambda at: with_small_disk(at, 1 << 20))), ["GiB free", _CURE], can_mount),
    Row(
        "cache of somebody else",
        _in_cache(_folder(lambda _: without_rights(), mode=0o555)),
        ["Permission denied", _CURE],
        can_drop_rights,
    ),
    Row("no home", _no_home, ["SPARKTIER_CACHE", "no home"], can_drop_rights),
]


def _unreadable_config(place: Place) -> Sequence[str]:
    place.file("config.yaml", "model: {path: demo}\n").chmod(0)
    place.wrapper = without_rights()
    return ["up", str(place.folder / "config.yaml")]


def _unreadable_model(place: Place) -> Sequence[str]:
    place.file("model/config.json", "{}").chmod(0)
    place.wrapper = without_rights()
    return ["up", DEMO, f"--set=model.path={place.folder / 'model'}"]


def _privileged_port(place: Place) -> Sequence[str]:
    place.wrapper = without_rights()
    return ["up", DEMO, f"--set=server.port={PRIVILEGED_PORT}"]


_RIGHTS = [
    Row("config can't be read", _unreadable_config, ["Permission denied", "Check the path"], can_drop_rights),
    Row("model can't be read", _unreadable_model, ["model.path", "Permission denied"], can_drop_rights),
    Row("port of root", _privileged_port, ["server.port", "Permission denied", "another port"], has_privileged_ports),
]


def _report(command: Sequence[str], path: str) -> Callable[[Place], Sequence[str]]:
    """Return what asks for a report inside the folder, where "file" and "pipe" are no folders."""

    def make(place: Place) -> Sequence[str]:
        place.file("file", "mine")
        os.mkfifo(place.folder / "pipe")
        return [*command, "--json", str(place.folder / path)]

    return make


def _report_on_a_full_disk(place: Place) -> Sequence[str]:
    (place.folder / "disk").mkdir()
    place.wrapper = with_small_disk(place.folder / "disk", 1 << 20, full=True)
    return [*_PLAN, "--json", str(place.folder / "disk" / "a.json")]


def _calibrated(path: str) -> Callable[[Place], Sequence[str]]:
    """Return what calibrates into a path of a folder in which "file" is a file and "full" has one."""

    def make(place: Place) -> Sequence[str]:
        place.file("file", "mine")
        place.file("full/model.safetensors", "mine")
        return ["calibrate", DEMO, "--prompts", "none.jsonl", "--out", str(place.folder / path)]

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
    Row("drafter below a file", _calibrated("file/draft"), ["Not a directory", "Give another"]),
    Row("drafter over a file", _calibrated("file"), ["Not a directory", "Give another"]),
    Row("drafter over another", _calibrated("full"), ["found files", "Give another"]),
    Row("report on a full disk", _report_on_a_full_disk, ["--json", "No space left", "another"], can_mount),
]

ROWS: list[Row] = [*_STARTS, *_CACHES, *_RIGHTS, *_REPORTS]


def environment(place: Place) -> dict[str, str]:
    """Return this process's environment with the changes of `place`."""
    merged = {**os.environ, **place.env}
    return {name: value for name, value in merged.items() if value is not None}
