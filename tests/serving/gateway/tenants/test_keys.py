"""Keys: new ones differ, only the right one opens, and a pepper is private and long enough."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.configs.errors import ConfigError
from sparktier.serving.gateway.tenants.keys import PEPPER_ENV, KeyRing, bearer_key, keyed_hash, new_key, read_pepper

PEPPER = b"p" * 32


def test_new_keys_differ_and_are_long() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {46}


def test_a_key_opens_its_tenant_alone() -> None:
    keys = {new_key(): f"tenant-{number}" for number in range(50)}
    ring = KeyRing(PEPPER, [(keyed_hash(PEPPER, key), name) for key, name in keys.items()])
    assert {key: ring.tenant_of(key) for key in keys} == keys
    other = KeyRing(b"q" * 32, [(keyed_hash(PEPPER, key), name) for key, name in keys.items()])
    assert not any(other.tenant_of(key) for key in keys)


@given(text=st.text() | st.sampled_from(["", "sk-", "x" * 300]))
def test_no_other_text_opens_anything(text: str) -> None:
    assert KeyRing(PEPPER, [(keyed_hash(PEPPER, "sk-right"), "a")]).tenant_of(text.replace("sk-right", "")) is None


def test_hashes_with_the_same_start_are_compared_in_full() -> None:
    right = keyed_hash(PEPPER, "sk-right")
    ring = KeyRing(PEPPER, [(right[:8] + "0" * 56, "wrong"), (right, "right")])
    assert ring.tenant_of("sk-right") == "right"
    assert KeyRing(PEPPER, [(right[:8] + "0" * 56, "wrong")]).tenant_of("sk-right") is None


def test_a_hash_is_of_one_purpose() -> None:
    assert keyed_hash(PEPPER, "acme") != keyed_hash(PEPPER, "acme", purpose="tenant")


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer sk-a", "sk-a"),
        ("bearer  sk-a ", "sk-a"),
        ("Basic sk-a", None),
        ("sk-a", None),
        ("Bearer", None),
        ("Bearer  ", None),
        ("", None),
        (None, None),
    ],
)
def test_the_key_in_a_header(header: str | None, key: str | None) -> None:
    assert bearer_key(header) == key


def test_a_pepper_comes_from_a_private_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "pepper"
    file.write_text("f" * 40 + "\n")
    file.chmod(0o600)
    env = {PEPPER_ENV: "e" * 40, "OTHER": "1"}
    assert read_pepper(str(file), env) == b"f" * 40
    assert read_pepper(None, env) == b"e" * 40
    # Children inherit what is left.
    assert env == {"OTHER": "1"}


@pytest.mark.parametrize(
    ("mode", "text", "rule"),
    [
        (0o640, "f" * 40, r"only its owner can read \(found mode 0640\). Run chmod 600"),
        (0o604, "f" * 40, r"only its owner can read \(found mode 0604\)"),
        (0o600, "short", r"at least 32 characters \(found 5\). Make one"),
        (None, "", r"must be a readable file"),
    ],
)
def test_a_pepper_that_does_not_do_is_refused_unseen(tmp_path: Path, mode: int | None, text: str, rule: str) -> None:
    file = tmp_path / "pepper"
    if mode is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(ConfigError, match=rule) as caught:
        read_pepper(str(file), {})
    assert not text or text not in str(caught.value).replace(str(tmp_path), "")


def test_without_a_pepper_the_way_to_make_one_is_told() -> None:
    with pytest.raises(ConfigError, match=r"gateway.pepper_file: must be given .*SPARKTIER_PEPPER.*openssl rand"):
        read_pepper(None, {})
