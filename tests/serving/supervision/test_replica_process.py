"""How the process of one replica ends: what another start may mend is told apart from what none can."""

import os
from pathlib import Path

import pytest

from sparktier.configs.loading.loader import settings_from
from sparktier.serving.supervision import replica_process as replica


@pytest.mark.parametrize("refusal", [OSError(28, "No space left on device"), TimeoutError("a rank was late")], ids=str)
def test_what_the_system_refuses_is_no_fault_of_the_settings(
    refusal: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> str:
        raise refusal

    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_ADDRESS": "127.0.0.1:1", "TMPDIR": str(tmp_path)})
    monkeypatch.setattr(replica, "join_cluster", refused)
    (tmp_path / "config.json").write_text("{}")
    settings = settings_from({"model": {"path": str(tmp_path)}, "replicas": {"device": "cpu"}})
    assert replica.run(settings, replica=3, port=1) == replica.EXIT_NOT_STARTED
    assert capsys.readouterr().err.splitlines()[-1] == f"replica 3: {refusal}"
