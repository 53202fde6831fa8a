"""Figures of a check in cells: written to a file after each, taken up again by a second run, stopped by a time limit.

Standard library alone, as the first stage runs where nothing is installed but torch.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Cell = Mapping[str, Any]
Figures = Mapping[str, Any]


class Results:
    """The rows of one file, a cell each: `{"meta": {...}, "rows": [{"stage", "cell", figures}]}`."""

    def __init__(self, file: Path, meta: Mapping[str, Any]) -> None:
        """Take up the rows that `file` has of the same machine and code.

        Raises:
            ValueError: it has rows of another.
        """
        self._file, self._meta = file, dict(meta)
        self.rows: list[dict[str, Any]] = []
        if file.exists():
            found = json.loads(file.read_text())
            if found["meta"] != self._meta:
                raise ValueError(
                    f"{file} must be of this machine and code to be gone on with ({self._meta}), it is of "
                    f"{found['meta']}. Name another file with --out, or remove it."
                )
            self.rows = found["rows"]

    def has(self, stage: str, cell: Cell) -> bool:
        """Whether the cell was measured before."""
        return any(row["stage"] == stage and row["cell"] == dict(cell) for row in self.rows)

    def add(self, stage: str, cell: Cell, figures: Figures) -> None:
        """Take in and print a cell's figures, and write the file, whole at every moment."""
        self.rows.append({"stage": stage, "cell": dict(cell), **figures})
        self._file.parent.mkdir(parents=True, exist_ok=True)
        beside = self._file.with_name(self._file.name + ".new")
        beside.write_text(json.dumps({"meta": self._meta, "rows": self.rows}, indent=1) + "\n")
        os.replace(beside, self._file)
        sys.stdout.write(f"{stage} {_told(cell)}: {_told(figures)}\n")
        sys.stdout.flush()

    def run(
        self,
        stage: str,
        cells: Iterable[Cell],
        measure: Callable[[Cell], Figures],
        *,
        until_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> list[Cell]:
        """Measure the cells that are missing, in order, and return those that time was left for no more.

        A cell that raises is kept with its error, so that the next ones still tell something.
        """
        left = []
        for cell in cells:
            if self.has(stage, cell):
                continue
            if clock() >= until_s:
                left.append(cell)
                continue
            try:
                figures = measure(cell)
            except Exception as error:
                figures = {"error": f"{type(error).__name__}: {error}"}
            self.add(stage, cell, figures)
        return left


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
