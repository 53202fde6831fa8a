"""The laptop's quickstart, top to bottom as a reader pastes it: an answer, a tier, a failure and a reload.

`make demo` is replaced by what it runs, on ports that are free here and with a copy of the configuration to edit.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from support.deployment import READY_LIMIT_S, free_port, wait_until
from support.documents.blocks import ROOT, blocks_of
from support.processes import Family, described

pytestmark = pytest.mark.prove
PAGE = ROOT / "docs" / "quickstart.md"
SERVE = "make demo | tee demo.log"
STOP_LIMIT_S = 60.0


def steps() -> list[tuple[str | None, str]]:
    """Return the mark and the commands of each block of the page."""
    return [(block.mark, block.text) for block in blocks_of(PAGE) if block.language == "sh"]


class Reader:
    """One who follows the page in the folder `checkout`."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self._port = free_port()

    def here(self, commands: str) -> str:
        """Return `commands` with this machine's free ports, and with the copied configuration."""
        told = f".venv/bin/sparktier demo configs/demo.yaml --set server.port={self._port}"
        text = commands.replace("make demo", told).replace(":8000", f":{self._port}")
        return text.replace(":9000", f":{self._port + 1000}")

    def paste(self, commands: str) -> str:
        """Run `commands`, which must succeed, and return what they print."""
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.here(commands)],
            cwd=self.checkout,
            capture_output=True,
            text=True,
            timeout=READY_LIMIT_S,
            check=False,
        )
        assert ran.returncode == 0, f"{commands}\n{ran.stdout}\n{ran.stderr}\n{self.log}"
        return ran.stdout

    @property
    def log(self) -> str:
        """What the demo has printed."""
        file = self.checkout / "demo.log"
        return file.read_text(errors="replace") if file.exists() else ""

    @contextmanager
    def serving(self, commands: str) -> Iterator[None]:
        """Serve by `commands`; afterwards Ctrl-C ends every process."""
        shell = subprocess.Popen(
            ["bash", "-c", self.here(commands)], cwd=self.checkout, stdout=sys.stderr, start_new_session=True
        )
        family = Family(psutil.Process(shell.pid))
        try:
            wait_until(
                lambda: "ready http=" in self.log or shell.poll() is not None,
                timeout_s=2 * READY_LIMIT_S,
                what=lambda: self.log,
            )
            assert shell.poll() is None, self.log
            family.living()
            yield
        finally:
            os.killpg(shell.pid, signal.SIGINT)
            left = family.gone_within(STOP_LIMIT_S)
            for process in left:
                process.kill()
        assert not left, described(left)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return Reader(tmp_path)


@pytest.mark.timeout(4 * READY_LIMIT_S)
def test_the_page_from_top_to_bottom(reader: Reader) -> None:
    told = [text for mark, text in steps() if mark is None]
    serve = [text for mark, text in steps() if mark == "stays in the foreground"]
    assert [text.splitlines()[1] for text in serve] == [SERVE]
    assert "@exec .venv/bin/sparktier demo\n" in (ROOT / "Makefile").read_text()
    with reader.serving(SERVE):
        said = [reader.paste(text) for text in told]
        ask, by_tier, metrics, decisions, latched, killed, reloaded = said
        assert re.search(r'"content":"\S', ask)
        assert "x-sparktier-tier: interactive" in by_tier
        assert '"tier":"interactive","attained_tok_s":' in by_tier
        assert "sparktier_rung{" in metrics
        assert "replica-0" in decisions
        assert re.findall(r"^sparktier_latched\{.*\} (\S+)$", latched, re.MULTILINE) == ["1.0", "1.0"]
        assert '"serving":1' in killed
        assert "tiers reloaded" in reloaded
        assert "weight" in reader.log.split("tiers reloaded")[1]
        assert reader.log.count("replica 0 serves on") == 2
