"""The keys file: what it may say, how a change is taken over, and that a broken one changes nothing."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparktier.configs.errors import ConfigError
from sparktier.configs.loading.loader import settings_from
from sparktier.serving.gateway.access import Access, access_of
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.tenants.keys import PEPPER_ENV, keyed_hash

PEPPER = "p" * 32
TIERS = {0: {"name": "standard", "default": True}, 1: {"name": "fast", "promise_tok_s": 20}}


def tenant(key: str, /, **fields: Any) -> dict[str, Any]:
    return {"keys": [keyed_hash(PEPPER.encode(), key)], "tiers": ["standard"], **fields}


def write(path: Path, tenants: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump({"tenants": dict(tenants)}))


def opened(path: Path) -> Access:
    data = {"model": {"path": "some/model"}, "tiers": TIERS, "gateway": {"keys_file": str(path)}}
    return access_of(settings_from(data), {PEPPER_ENV: PEPPER})


def name_of(access: Access, key: str) -> str | None:
    try:
        return access.authenticate(f"Bearer {key}").name
    except Refused as error:
        return None if (error.status, error.code) == (401, "invalid_api_key") else str(error)


def test_tenants_are_as_the_file_says(tmp_path: Path) -> None:
    limits = {"users_at_once": 3}
    write(
        tmp_path / "keys.yaml",
        {"a": tenant("sk-a", tiers=["fast", "standard"], default_tier="fast", limits=limits), "b": tenant("sk-b")},
    )
    access = opened(tmp_path / "keys.yaml")
    a, b = (access.authenticate(f"Bearer {key}") for key in ("sk-a", "sk-b"))
    assert (a.name, a.entitled.tiers, a.entitled.default, a.limits.users_at_once) == ("a", {0, 1}, 1, 3)
    assert (b.name, b.entitled.tiers, b.entitled.default, b.limits.users_at_once) == ("b", {0}, 0, None)
    with pytest.raises(Refused, match="asks for a key") as caught:
        access.authenticate(None)
    assert (caught.value.status, caught.value.code) == (401, "missing_api_key")


def test_prefixes_are_shared_by_those_alone_who_say_so(tmp_path: Path) -> None:
    names = {"a": False, "b": False, "c": True, "d": True}
    write(tmp_path / "keys.yaml", {name: tenant(f"sk-{name}", share_prefixes=share) for name, share in names.items()})
    access = opened(tmp_path / "keys.yaml")
    a, b, c, d = (access.authenticate(f"Bearer sk-{name}") for name in names)
    own = [tenant.prefix_key(key) for tenant in (a, b) for key in (None, "x", "y")]
    assert len({*own}) == 6
    assert all(key is not None and len(key) == 64 for key in own)
    assert [tenant.prefix_key(key) for tenant in (c, d) for key in (None, "x")] == [None, "x"] * 2
    # No tenant can name another's.
    assert a.prefix_key(b.prefix_key(None)) not in own


PLAIN = "sk-plain-key-in-the-wrong-place"


@pytest.mark.parametrize(
    ("tenants", "problem"),
    [
        ({}, "tenants: must hold at least 1"),
        ({"a": {"tiers": ["standard"]}}, "tenants.a.keys: is required"),
        ({"a": tenant("sk-a", keys=[PLAIN])}, r"tenants.a.keys.0: must be 64 hex digits .*sparktier key.*not shown"),
        ({"a": tenant("sk-a", keys=PLAIN)}, r"tenants.a.keys: .*not shown"),
        ({"a": tenant("sk-a", key=PLAIN)}, r"tenants.a.key: is not a key .*not shown.*Did you mean keys"),
        ({"a": tenant("sk-a", tiers=["gold"])}, r"tenants.a.tiers.0: must be the name of a tier \(found gold\)"),
        ({"a": tenant("sk-a", tiers=["fast"])}, r"tenants.a.default_tier: .*\(found standard\). Name one of fast"),
        ({"a": tenant("sk-a", default_tier="fast")}, r"tenants.a.default_tier: must be one of the tenant's tiers"),
        ({"a": tenant("sk-a", limits={"users_at_once": 0})}, r"tenants.a.limits.users_at_once: must be at least 1"),
        (
            {"a": tenant("sk-a"), "b": tenant("sk-a")},
            r"tenants.b.keys.0: .* alone \(found the same of a\)",
        ),
        ({"A b": tenant("sk-a")}, r"tenants.A b: must match"),
    ],
)
def test_a_wrong_file_is_refused_with_its_rule(tmp_path: Path, tenants: dict[str, Any], problem: str) -> None:
    write(tmp_path / "keys.yaml", tenants)
    with pytest.raises(ConfigError, match=problem) as caught:
        opened(tmp_path / "keys.yaml")
    assert str(caught.value).startswith(f"gateway.keys_file: {tmp_path / 'keys.yaml'}: tenants")
    assert PLAIN not in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "- a", "{", "tenants: {a: {}}\ntenants: {}\n"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"gateway.keys_file: .*keys.yaml: "):
        opened(tmp_path / "keys.yaml")


def test_a_file_written_anew_is_in_force(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    write(file, {"a": tenant("sk-a"), "b": tenant("sk-b")})
    access = opened(file)
    assert access.keys is not None
    access.keys.poll()
    write(tmp_path / "new.yaml", {"b": tenant("sk-b2", tiers=["fast", "standard"])})
    os.replace(tmp_path / "new.yaml", file)
    assert name_of(access, "sk-a") == "a"
    access.keys.poll()
    assert [name_of(access, key) for key in ("sk-a", "sk-b", "sk-b2")] == [None, None, "b"]
    assert access.authenticate("Bearer sk-b2").entitled.tiers == {0, 1}


def test_a_link_that_is_swapped_is_followed(tmp_path: Path) -> None:
    """As a ConfigMap changes: the file is a link into `..data`, itself a link to a folder that is replaced."""
    for version, key in (("1", "sk-old"), ("2", "sk-new")):
        (tmp_path / version).mkdir()
        write(tmp_path / version / "keys.yaml", {"a": tenant(key)})
        os.utime(tmp_path / version / "keys.yaml", ns=(0, 0))
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "keys.yaml").symlink_to("..data/keys.yaml")
    access = opened(tmp_path / "keys.yaml")
    assert access.keys is not None
    (tmp_path / "..next").symlink_to("2")
    os.replace(tmp_path / "..next", tmp_path / "..data")
    access.keys.poll()
    assert [name_of(access, key) for key in ("sk-old", "sk-new")] == [None, "a"]


@pytest.mark.parametrize(
    "broken", [f"tenants: {{a: {{keys: [{PLAIN}], tiers: [gold]}}}}", "tenants: {", "", None], ids=str
)
def test_a_broken_file_leaves_the_old_in_force_and_says_so_once(
    tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.yaml"
    write(file, {"a": tenant("sk-a")})
    access = opened(file)
    assert access.keys is not None
    file.unlink()
    if broken is not None:
        file.write_text(broken)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            access.keys.poll()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{file}: the tenants from before stay in force. ")
    assert PLAIN not in caplog.text
    assert name_of(access, "sk-a") == "a"
    write(tmp_path / "good.yaml", {"b": tenant("sk-b")})
    os.replace(tmp_path / "good.yaml", file)
    access.keys.poll()
    assert [name_of(access, key) for key in ("sk-a", "sk-b")] == [None, "b"]


def test_without_a_keys_file_everybody_may_use_every_tier() -> None:
    access = access_of(settings_from({"model": {"path": "some/model"}, "tiers": TIERS}), {})
    for header in (None, "Bearer none"):
        everybody = access.authenticate(header)
        assert (everybody.entitled.tiers, everybody.entitled.default) == ({0, 1}, 0)
        assert everybody.prefix_key("own") == "own"
        assert everybody.prefix_key(None) is None
