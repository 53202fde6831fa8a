"""The keys of a run: new each time, readable by their owner alone, never shown."""

import logging
import os
import stat
from pathlib import Path

import pytest

from sparktier.configs.errors import ArtifactError
from sparktier.configs.loading.loader import load_settings, settings_from
from sparktier.configs.rules.sglang_passthrough import passthrough_problems
from sparktier.serving.bench.measured_replica import first_replica
from sparktier.serving.clients.replica_keys import KEYS_FILE_ENV, keys_of, new_keys_file, read_keys, write_private
from sparktier.serving.drafting.feature_client import EngineFeatures
from sparktier.serving.gateway.access import access_of
from sparktier.serving.supervision import replica_process as replica
from sparktier.serving.supervision.deployment_dir import new_deployment_dir
from sparktier.serving.supervision.up import _Deployment
from support.machines import resolved_on


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_each_run_has_two_keys_of_its_own(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    keys = [read_keys(new_keys_file(folder)) for folder in folders]
    values = {value for one in keys for value in (one.requests, one.admin)}
    assert len(values) == 4
    assert min(map(len, values)) >= 43
    assert not any(value in repr(keys) for value in values)


def test_what_a_run_keeps_is_its_owners(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        run = new_deployment_dir(tmp_path / "runs")
        settings = settings_from({"model": {"path": "some/model"}})
        _Deployment(resolved_on("cpu", settings, "/weights"), run, access_of(settings), None, lambda: settings)
    finally:
        os.umask(old)
    deployment_dir = run.path
    assert mode(deployment_dir) == 0o700
    assert [mode(deployment_dir / name) for name in ("settings.yaml", "keys.json")] == [0o600, 0o600]
    kept = load_settings(deployment_dir / "settings.yaml")
    assert (kept.replicas.device, kept.model.path, kept.model.public_name) == ("cpu", "/weights", "model")


def test_a_private_file_is_never_one_that_somebody_laid_there(tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "link", "a key")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "{", '{"requests": "a", "admin": ""}', '{"requests": 1, "admin": "b"}']
)
def test_a_file_without_keys_is_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"must hold the two keys of a run.*Name the file"):
        read_keys(tmp_path / "keys.json")
    for env in ({}, {KEYS_FILE_ENV: str(tmp_path / "none")}):
        with pytest.raises(ArtifactError, match="Name the file"):
            keys_of(env)


def test_a_benchmark_takes_key_and_address_from_what_up_printed(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    file = new_keys_file(folder)
    output = f"logs in {folder}\nkeys of the replicas' own ports in {file}\nreplica 0 serves on http://127.0.0.1:7\n"
    client = first_replica(output)._client
    assert client.url == "http://127.0.0.1:7"
    assert client.headers["Authorization"] == f"Bearer {read_keys(file).admin}"


def test_a_source_of_features_does_not_show_its_key() -> None:
    assert "secret" not in repr(EngineFeatures("http://a", [], key="secret"))


@pytest.mark.parametrize("name", ["api_key", "admin_api_key"])
def test_settings_may_not_hold_a_key(name: str) -> None:
    (problem,) = passthrough_problems([name])
    assert str(problem).startswith(f"replicas.sglang_args.{name}: is made by sparktier anew for each run")


def test_more_http_processes_are_refused_because_they_have_no_keys() -> None:
    (problem,) = passthrough_problems(["tokenizer_worker_num"])
    assert "neither sparktier's routes nor its keys" in str(problem)


def test_a_replica_started_by_hand_says_where_its_keys_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEYS_FILE_ENV, "")
    monkeypatch.delenv(KEYS_FILE_ENV)
    with caplog.at_level(logging.INFO):
        keys = replica._keys()
    file = Path(caplog.text.strip().rpartition(" in ")[2])
    assert read_keys(file) == keys == replica._keys()
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert keys.admin not in caplog.text
    assert keys.requests not in caplog.text
