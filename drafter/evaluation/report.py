"""Writes JSON reports. Their form is in `configs/report.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparktier.configs.files import write_json
from sparktier.configs.report import Meta, Report


def write_report(path: Path, meta: Meta, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace `path` by a report in one step. Raises ArtifactError when it can't be written."""
    write_json(path, Report(meta=meta, rows=[dict(row) for row in rows]).model_dump(mode="json"))
