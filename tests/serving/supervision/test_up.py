"""What `sparktier up` says is for readers who may have gone."""

import sys
from typing import Any

import pytest

from sparktier.serving.supervision import up


class Gone:
    """An output that is not read."""

    def write(self, text: str) -> int:
        """Refuse."""
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        """Refuse."""
        raise OSError(28, "No space left on device")


def test_an_output_that_takes_nothing_more_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: Any = Gone()
    monkeypatch.setattr(sys, "stdout", gone)
    up._log("ready")
