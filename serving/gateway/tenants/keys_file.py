"""Reads the keys file, and again whenever it changes; a broken one leaves the tenants of the last good one in force."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.files import file_mark
from sparktier.configs.loading.explain import explain
from sparktier.configs.loading.yaml_source import read_yaml
from sparktier.configs.settings.tenants import TenantsFile
from sparktier.serving.gateway.tenants.directory import Directory

logger = logging.getLogger(__name__)
POLL_INTERVAL_S = 1.0
# A value may be a key that was written where its hash belongs.
_HIDDEN = "a value that is not shown"

Build = Callable[[TenantsFile], Directory]


class KeysFile:
    """The keys file at `path`, made a directory by `build`; `failed` counts what could not be read again."""

    def __init__(self, path: Path, build: Build, failed: Counter[str] | None = None) -> None:
        """Raises ConfigError when the file breaks a rule."""
        self._failed: Counter[str] = Counter() if failed is None else failed
        self._path = path
        self._build = build
        self._mark = file_mark(path)
        self.directory = self._read(self._build)

    def rebuild(self, build: Build) -> None:
        """Make directories by `build` from now on. Raises ConfigError, and changes nothing, when the file breaks it."""
        directory = self._read(build)
        self._build, self.directory = build, directory

    def poll(self) -> None:
        """Read the file if it is another one than before; say in the log what came of it."""
        mark = file_mark(self._path)
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self.directory = self._read(self._build)
        except ConfigError as error:
            self._failed["tenants"] += 1
            first, *more = error.problems
            others = f" It has {len(more)} more." if more else ""
            logger.warning("%s: the tenants from before stay in force. %s%s", self._path, first, others)
        else:
            logger.info("%s: %d tenants are in force", self._path, len(self.directory.names))

    async def watch(self) -> None:
        """Poll until cancelled; reading is left to a thread, as a file system may be slow."""
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            await asyncio.to_thread(self.poll)

    def _read(self, build: Build) -> Directory:
        data, repeated = read_yaml(self._path)
        if repeated:
            raise ConfigError(repeated)
        try:
            file = TenantsFile.model_validate(data)
        except ValidationError as error:
            problems = [explain(detail, TenantsFile).problem for detail in error.errors()]
            raise ConfigError([replace(problem, value=_HIDDEN) for problem in problems]) from None
        return build(file)


def load_keys_file(path: Path, build: Build, failed: Counter[str]) -> KeysFile:
    """Return the keys file at `path`; `failed` counts what can't be read again later.

    Raises:
        ConfigError: it breaks rules; their places begin with the key of the settings.
    """
    try:
        return KeysFile(path, build, failed)
    except ConfigError as error:
        raise ConfigError([_inside(path, problem) for problem in error.problems]) from None


def _inside(path: Path, problem: Problem) -> Problem:
    return replace(problem, path=f"gateway.keys_file: {path}: {problem.path}")
