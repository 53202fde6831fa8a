"""Commands in documents run as they are written, where they need nothing but a checkout.

The quickstart's, which need one demo all together, are in test_quickstart.py.
"""

import os
import subprocess
from pathlib import Path

import pytest

from support.documents.blocks import ROOT, Block, blocks

TOGETHER = ROOT / "docs" / "quickstart.md"
RUN = [
    block for block in blocks() if block.language in ("sh", "python") and block.mark is None and block.file != TOGETHER
]


def test_there_are_blocks_to_run() -> None:
    assert len(RUN) >= 2


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_runs(block: Block, tmp_path: Path) -> None:
    for name in ("configs", "docs", "helm"):
        (tmp_path / name).symlink_to(ROOT / name)
    program = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else ["python", "-c"]
    environment = {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}
    ran = subprocess.run(
        [*program, block.text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, f"{block}\n{ran.stdout}{ran.stderr}"
