"""Holds the SGLang that is installed, or one that might be, against the one our hooks were written for.

`python -m sparktier.serving.engine.upstream.check` checks the installed package; with a version, a wheel from the
package index (`make check-upstream VERSION=x`); with `--record` it writes the lock file. Imports no SGLang.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from rich.console import Console

from sparktier.configs.errors import EXIT_BAD_INPUT, UpstreamError
from sparktier.serving.engine.upstream.manifest import USES, Use
from sparktier.serving.engine.upstream.source import installed_root, symbol_hash

LOCK_FILE = Path(__file__).with_name("upstream.lock.json")
EXIT_DIFFERS = 1

State = Literal["same", "changed", "missing", "unrecorded"]


@dataclass(frozen=True)
class Finding:
    """How one symbol compares with what was recorded."""

    use: Use
    state: State


@dataclass(frozen=True)
class Lock:
    """The version our hooks were written for, and the hash of each symbol in it."""

    version: str
    hashes: dict[str, str]


def read_lock(file: Path = LOCK_FILE) -> Lock:
    """Return what was recorded."""
    data = json.loads(file.read_text(encoding="utf-8"))
    return Lock(version=data["version"], hashes=data["hashes"])


def require_version(lock: Lock | None = None) -> None:
    """Refuse to start on another SGLang than the recorded one.

    Raises:
        UpstreamError: SGLang is missing or of another version.
    """
    wanted, found = (lock or read_lock()).version, installed_version()
    if found != wanted:
        raise UpstreamError(
            f"SGLang must be {wanted}, whose internals sparktier hooks (found {found or 'none'}). "
            f"Install sglang=={wanted}, or see what changed: make check-upstream VERSION={found or 'x'}."
        )


def installed_version() -> str | None:
    """Return the version of the installed SGLang, or None."""
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return None


def compare(root: Traversable, uses: Iterable[Use] = USES, hashes: dict[str, str] | None = None) -> list[Finding]:
    """Return a finding for every one of `uses` in the package below `root`; `hashes` defaults to the lock file's."""
    recorded = read_lock().hashes if hashes is None else hashes
    return [Finding(use, _state(symbol_hash(root, use.symbol), recorded.get(use.symbol))) for use in uses]


def record(root: Traversable, version: str, file: Path = LOCK_FILE) -> None:
    """Write the hashes of all uses below `root` as those of `version`.

    Raises:
        UpstreamError: a symbol does not exist there.
    """
    hashes = {use.symbol: symbol_hash(root, use.symbol) for use in USES}
    if missing := [symbol for symbol, value in hashes.items() if value is None]:
        raise UpstreamError(
            f"Every symbol of the manifest must exist in SGLang {version} (missing: {', '.join(missing)}). "
            "Correct serving/engine/upstream/manifest.py."
        )
    text = json.dumps({"version": version, "hashes": dict(sorted(hashes.items()))}, indent=2)
    file.write_text(text + "\n", encoding="utf-8")


def _state(now: str | None, recorded: str | None) -> State:
    if now is None:
        return "missing"
    if recorded is None:
        return "unrecorded"
    return "same" if now == recorded else "changed"


def _fetch(version: str, folder: Path) -> Traversable:
    """Download the wheel of `version` into `folder` and return its root, unopened.

    Raises:
        UpstreamError: the package index has no such wheel or can't be reached.
    """
    # The target's platform does not matter to what is read, so any wheel of it will do.
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, "--only-binary=:all:", f"--dest={folder}", f"sglang=={version}"],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("sglang-*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UpstreamError(f"SGLang {version} must be on the package index ({reason}). Name another version.")
    return zipfile.Path(wheels[0])


def _report(findings: Sequence[Finding], version: str) -> int:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    differing = [finding for finding in findings if finding.state != "same"]
    for finding in differing:
        console.print(f"{finding.state:<10} {finding.use.symbol}  ({finding.use.why})")
    console.print(f"SGLang {version}: {len(findings) - len(differing)} of {len(findings)} symbols as recorded")
    return EXIT_DIFFERS if differing else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 all as recorded, 1 something differs, 2 bad input."""
    parser = argparse.ArgumentParser(prog="upstream", description="Compare SGLang's internals with those recorded.")
    parser.add_argument("version", nargs="?", help="version to fetch; without one, the installed package is checked")
    parser.add_argument("--record", action="store_true", help="write the installed package's hashes to the lock file")
    options = parser.parse_args(arguments)
    try:
        return _run(options.version, recording=options.record)
    except UpstreamError as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"upstream: {error}")
        return EXIT_BAD_INPUT


def _run(version: str | None, *, recording: bool) -> int:
    if version is not None and not recording:
        with tempfile.TemporaryDirectory() as folder:
            return _report(compare(_fetch(version, Path(folder))), version)
    root, installed = installed_root(), installed_version()
    if root is None or installed is None:
        raise UpstreamError("SGLang must be installed (found none). Run make env.")
    if recording:
        record(root, installed)
    return _report(compare(root), installed)


if __name__ == "__main__":
    sys.exit(main())
