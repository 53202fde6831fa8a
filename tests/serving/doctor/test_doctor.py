"""doctor: each check sees what it is for, on this real machine, and names a cure."""

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sparktier.configs.loading.loader import settings_from
from sparktier.configs.settings.settings import Settings
from sparktier.configs.step_times import reference_table, write_table
from sparktier.drafter.demo.location import demo_draft
from sparktier.serving.deployment.resolved import Machine
from sparktier.serving.doctor import checks as doctor
from sparktier.serving.doctor.checks import Finding, examine
from support.machines import CPU_MACHINE, SLOW_CPU_MACHINE


def settings_of(**sections: Any) -> Settings:
    return settings_from({"model": {"path": "org/name"}, **sections})


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_this_machine_can_serve(free_port: int) -> None:
    findings = examine(settings_of(server={"port": free_port}, replicas={"device": "cpu"}))
    assert [finding for finding in findings if finding.fails] == []
    names = {finding.check for finding in findings}
    assert {"python", "sglang", "torch", "ray", "flashinfer-python", "sglang internals", "memory", "disk"} <= names
    assert {"entry point sparktier", "entry point sparktier_cpu", "port", "ray", "model"} <= names


def test_each_promise_is_compared_with_one_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    write_table(file, reference_table("avx2"))
    settings = settings_of(
        speculation={"method": "chain", "draft_path": "org/draft", "block_tokens": 5, "step_times_path": str(file)},
        tiers={
            0: {"name": "free", "default": True},
            1: {"name": "kept", "promise_tok_s": 30},
            2: {"name": "hopeless", "promise_tok_s": 50},
        },
    )
    kept, hopeless = doctor.check_promises(settings)
    assert (kept.check, kept.fails, hopeless.fails) == ("tier kept", False, True)
    assert "promises 50 tok/s, one user alone reaches at most" in hopeless.found
    assert hopeless.cure
    shipped = {"method": "chain", "draft_path": "demo", "step_times_path": str(file)}
    tiers = {0: {"name": "free", "default": True, "promise_tok_s": 50}}
    assert only(doctor.check_promises(settings_of(speculation=shipped, tiers=tiers))).fails
    file.write_text("{}")
    assert only(doctor.check_promises(settings)).fails
    assert list(doctor.check_promises(settings_of())) == []


@pytest.mark.parametrize(("chunk", "status"), [(None, "ok"), (32, "ok"), (128, "warning")])
def test_the_longest_stall_is_shown_and_compared_with_the_tiers(tmp_path: Path, chunk: int | None, status: str) -> None:
    file = tmp_path / "times.json"
    write_table(file, reference_table("avx2"))
    settings = settings_of(
        replicas={"chunked_prefill_tokens": chunk},
        speculation={"method": "chain", "draft_path": "org/draft", "step_times_path": str(file)},
        tiers={0: {"name": "free", "default": True, "max_stall_ms": 300}},
    )
    stall = only(doctor.check_promises(settings))
    assert (stall.check, stall.status) == ("longest stall", status)
    assert f"for a chunk of {chunk or 48} prompt tokens" in stall.found


def test_a_taken_port_is_found(busy_port: int) -> None:
    finding, *others = doctor.check_port(settings_of(server={"port": busy_port}))
    assert [other.fails for other in others] == [False, False]
    assert finding.fails
    assert str(busy_port) in finding.found
    assert finding.cure


def test_a_cache_in_which_nothing_can_be_built_is_found_and_logs_go_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("SPARKTIER_CACHE", str(tmp_path / "cache"))
    demo = settings_of(model={"path": "demo"})
    model = only(doctor.check_model(demo))
    assert model.fails
    assert "Not a directory" in model.found
    assert "SPARKTIER_CACHE" in model.cure
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert str(tmp_path) in only(doctor.check_disk(demo)).found
    (tmp_path / f"sparktier-{os.getuid()}").write_text("a file as well")
    assert only(doctor.check_disk(demo)).fails


def test_an_address_of_another_machine_is_found() -> None:
    elsewhere = settings_of(server={"host": "192.0.2.1"}, gateway={"keys_file": "/etc/sparktier/keys.yaml"})
    assert [finding.fails for finding in doctor.check_port(elsewhere)] == [True, True, False]


def test_a_ray_cluster_that_does_not_answer_is_found(free_port: int, busy_port: int) -> None:
    silent = only(doctor.check_ray(settings_of(ray={"address": f"127.0.0.1:{free_port}"})))
    assert silent.fails
    answering = only(doctor.check_ray(settings_of(ray={"address": f"127.0.0.1:{busy_port}"})))
    assert not answering.fails
    assert not only(doctor.check_ray(settings_of())).fails


def fake_distribution(root: Path, name: str, version: str, entry_points: str = "") -> None:
    folder = root / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "entry_points.txt").write_text(entry_points)


def test_a_package_of_the_wrong_version_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_distribution(tmp_path, "ray", "1.0.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    failed = [finding for finding in doctor.check_packages(settings_of()) if finding.fails]
    assert [finding.check for finding in failed] == ["ray"]
    assert "2.55" in failed[0].cure


def test_a_plugin_that_cannot_be_imported_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_distribution(tmp_path, "broken", "1", "[sglang.srt.plugins]\nsparktier = no_such_module:register\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    failed = [finding for finding in doctor.check_plugins(settings_of()) if finding.fails]
    assert [finding.check for finding in failed] == ["entry point sparktier"]


def test_a_whitelist_without_our_plugin_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", "another")
    assert [finding.check for finding in doctor.check_plugins(settings_of()) if finding.fails] == ["SGLANG_PLUGINS"]
    monkeypatch.setenv("SGLANG_PLUGINS", "another, sparktier")
    assert not any(finding.fails for finding in doctor.check_plugins(settings_of()))


def test_more_ranks_than_the_machine_has_is_found() -> None:
    many = settings_of(replicas={"device": "cpu", "tensor_parallel": 512})
    cores, _ = doctor.check_device(many)
    memory = next(iter(doctor.check_memory(many)))
    assert (cores.status, memory.status) == ("warning", "warning")
    assert "1026 GiB" in memory.cure


@pytest.mark.parametrize(("machine", "dtype", "status"), [
    (SLOW_CPU_MACHINE, "auto", "ok"), (SLOW_CPU_MACHINE, "float32", "ok"), (SLOW_CPU_MACHINE, "bfloat16", "warning"),
    (CPU_MACHINE, "bfloat16", "ok"),
])  # fmt: skip
def test_numbers_that_this_cpu_is_slow_in_are_found(machine: Machine, dtype: str, status: str) -> None:
    settings = settings_of(model={"path": "org/name", "dtype": dtype}, replicas={"device": "auto"})
    _, number_format = doctor.check_device(settings, machine)
    assert number_format.status == status


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_gpus_are_found() -> None:
    assert only(doctor.check_device(settings_of(replicas={"device": "cuda", "tensor_parallel": 4}))).fails


def checkpoint(folder: Path, *, shards: int = 2) -> Path:
    weight_map = {}
    for number in range(shards):
        name = f"model-{number}.safetensors"
        save_file({f"w{number}": torch.zeros(64)}, folder / name)
        weight_map[f"w{number}"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def model_finding(folder: Path) -> Finding:
    return only(doctor.check_model(settings_from({"model": {"path": str(folder)}})))


def test_a_whole_checkpoint_is_fine(tmp_path: Path) -> None:
    assert not model_finding(checkpoint(tmp_path)).fails
    (tmp_path / "model.safetensors.index.json").unlink()
    assert not model_finding(tmp_path).fails


def test_a_missing_folder_config_or_tokenizer_is_found(tmp_path: Path) -> None:
    assert model_finding(tmp_path / "none").fails
    for name in ("config.json", "tokenizer.json"):
        folder = tmp_path / name.removesuffix(".json")
        folder.mkdir()
        (checkpoint(folder) / name).unlink()
        assert model_finding(folder).fails


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (checkpoint(tmp_path) / "model-1.safetensors").unlink()
    assert "model-1.safetensors" in model_finding(tmp_path).found


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_shard_cut_short_is_named(tmp_path: Path, keep: int) -> None:
    file = checkpoint(tmp_path) / "model-0.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    finding = model_finding(tmp_path)
    assert finding.fails
    assert "model-0.safetensors" in finding.found
    assert "model-1.safetensors" not in finding.found


def test_an_index_that_is_no_index_is_found(tmp_path: Path) -> None:
    (checkpoint(tmp_path) / "model.safetensors.index.json").write_text("[]")
    assert model_finding(tmp_path).fails


def test_a_folder_without_weights_is_found(tmp_path: Path) -> None:
    assert model_finding(checkpoint(tmp_path, shards=0)).fails


def test_the_calibration_in_force_is_told(tmp_path: Path) -> None:
    def calibration(draft: Path, method: str = "tree", **more: Any) -> Finding:
        section = {"method": method, "draft_path": str(draft), **more}
        return only(doctor.check_calibration(settings_of(speculation=section)))

    shipped = only(doctor.check_calibration(settings_of(speculation={"method": "tree", "draft_path": "demo"})))
    assert shipped.status == "ok"
    assert "children.json" in shipped.found
    folder = tmp_path / "draft"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "children.json", "sts.json"):
        shutil.copy(demo_draft() / name, folder / name)
    assert calibration(folder).found.startswith(f"{folder / 'children.json'}")
    native = {"method": "dspark_native", "verification": "compact"}
    assert calibration(folder, **native).found.startswith(f"{folder / 'sts.json'}")
    assert calibration(folder, **native, calibration_path=str(demo_draft() / "sts.json")).found.startswith(
        f"{demo_draft() / 'sts.json'}"
    )
    (folder / "sts.json").unlink()
    assert calibration(folder, **native).status == "warning"
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    assert calibration(folder).fails
    (folder / "children.json").unlink()
    assert "q itself" in calibration(folder).found
    assert list(doctor.check_calibration(settings_of())) == []


def test_a_draft_in_the_hubs_cache_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    settings = settings_of(speculation={"method": "tree", "draft_path": "org/draft"})
    assert "SGLang will fetch it" in only(doctor.check_calibration(settings)).found
    repository = tmp_path / "hub" / "models--org--draft"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    shutil.copytree(demo_draft(), repository / "snapshots" / "abc123")
    assert "abc123/children.json" in only(doctor.check_calibration(settings)).found
