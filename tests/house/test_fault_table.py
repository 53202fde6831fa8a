"""The table of faults in docs/operations.md names a test for each, and the test exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TEST = re.compile(r"`(tests/\S+\.py)::(test_\w+)`")


def test_each_fault_has_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "operations.md").read_text().split("## Faults and their tests")[1].split("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 9
    for row in rows:
        named = _TEST.findall(row)
        assert named, row
        for file, name in named:
            assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), name
