"""No file, path or environment ends a command in a traceback, or costs its user a file."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest

from sparktier.serving.cli.main import main
from support.inputs.bad_drafter_files import DRAFTER_ROWS
from support.inputs.bad_surroundings import ROWS, Place, Row, environment


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in (*ROWS, *DRAFTER_ROWS)])
def test_it_ends_in_one_line_with_rule_value_and_cure(
    row: Row, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not row.possible():
        pytest.skip("not on this machine")
    place = Place(tmp_path)
    arguments = row.make(place)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    exit_status = in_own_process(arguments, place) if place.wrapper else in_this_process(arguments, place)
    complaint = capfd.readouterr().err
    assert "Traceback" not in complaint
    assert exit_status == 2, complaint
    (line,) = (line for line in complaint.splitlines() if line.startswith("sparktier: "))
    assert [word for word in row.says if word not in line] == [], line
    assert {path: digest for path, digest in contents(tmp_path).items() if path in before} == before


def in_this_process(arguments: Sequence[str], place: Place) -> int:
    with mock.patch.dict("os.environ", environment(place), clear=True):
        try:
            return main(arguments)
        except SystemExit as ended:
            return int(str(ended.code))


def in_own_process(arguments: Sequence[str], place: Place) -> int:
    command = [*place.wrapper, sys.executable, "-m", "sparktier.serving.cli.main", *arguments]
    return subprocess.run(command, env=environment(place), check=False, timeout=120).returncode


def contents(folder: Path) -> dict[Path, str]:
    """Return the digest of every file below `folder`."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
