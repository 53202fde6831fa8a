"""Rows of a long command, kept beside its report as they are found: an interrupted run goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


class KeptRows:
    """The rows that are kept for `report`; without one nothing is. `known` are those of an interrupted run, by key."""

    def __init__(self, report: Path | None) -> None:
        self._path = None if report is None else report.with_name(report.name + ".part")
        self.known = _read(self._path)

    def keep(self, key: str, rows: Rows) -> None:
        """Keep rows that were found."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, rows]) + "\n")

    def forget(self) -> None:
        """Keep nothing more: the report has them all."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _read(path: Path | None) -> dict[str, Rows]:
    """Return the rows in the file by key. Its last line may be torn."""
    found: dict[str, Rows] = {}
    if path is None or not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            key, rows = json.loads(line)
        except ValueError:
            continue
        found[key] = rows
    return found
