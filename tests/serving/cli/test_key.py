"""`sparktier key`: one key a call, and the hash that opens for it."""

import re
from pathlib import Path

import pytest

from sparktier.serving.cli.main import main
from sparktier.serving.gateway.tenants.keys import PEPPER_ENV, KeyRing

DEMO = str(Path(__file__).resolve().parents[3] / "configs" / "demo.yaml")
PEPPER = "p" * 32


def made(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setenv(PEPPER_ENV, PEPPER)
    assert main(["key", DEMO]) == 0
    found = re.fullmatch(
        r"key, shown this once: (\S+)\nline for the keys file: ([0-9a-f]{64})\n", capsys.readouterr().out
    )
    assert found
    return found[1], found[2]


def test_each_call_makes_a_key_that_its_hash_opens_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, hashed), (second, _) = made(capsys, monkeypatch), made(capsys, monkeypatch)
    ring = KeyRing(PEPPER.encode(), [(hashed, "acme")])
    assert (ring.tenant_of(first), ring.tenant_of(second)) == ("acme", None)


def test_without_a_pepper_it_is_told_how_to_make_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PEPPER_ENV, raising=False)
    assert main(["key", DEMO]) == 2
    assert "gateway.pepper_file" in capsys.readouterr().err
