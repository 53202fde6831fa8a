"""What a machine makes of settings: what they leave open is decided once, and no later process decides again."""

from pathlib import Path

import pytest
import yaml

from sparktier.configs.errors import ConfigError
from sparktier.configs.loading.loader import load_settings, settings_from
from sparktier.configs.settings.settings import Settings
from sparktier.serving.deployment.resolved import (
    GPU_NODE,
    THIS_MACHINE,
    Device,
    Machine,
    resolve,
    resolve_without_weights,
)
from support.machines import CPU_MACHINE, SLOW_CPU_MACHINE
from support.oracles.oracle_draft import make_oracle_draft
from support.tiny_moe import make_tiny_moe


def asked() -> bool:
    raise AssertionError("a machine is asked what the settings say")


def settings_of(**model: str) -> Settings:
    return settings_from({"model": {"path": "org/name", **model}})


@pytest.mark.parametrize(("device", "machine", "becomes"), [
    ("auto", CPU_MACHINE, "cpu"), ("auto", GPU_NODE, "cuda"),
    ("cpu", Machine(asked, lambda: True), "cpu"), ("cuda", Machine(asked, asked), "cuda"),
])  # fmt: skip
def test_a_device_that_is_named_asks_no_machine(device: str, machine: Machine, becomes: Device) -> None:
    settings = settings_from({"model": {"path": "org/name"}, "replicas": {"device": device}})
    assert resolve_without_weights(settings, machine).device == becomes


@pytest.mark.parametrize(("dtype", "machine", "becomes"), [
    ("auto", SLOW_CPU_MACHINE, "float32"), ("auto", CPU_MACHINE, "auto"),
    ("auto", Machine(lambda: True, asked), "auto"), ("bfloat16", Machine(lambda: False, asked), "bfloat16"),
])  # fmt: skip
def test_auto_is_float32_on_a_cpu_that_is_slow_in_bfloat16(dtype: str, machine: Machine, becomes: str) -> None:
    assert resolve_without_weights(settings_of(dtype=dtype), machine).dtype == becomes


def test_what_the_device_can_t_run_is_refused_before_weights_are_looked_for() -> None:
    settings = settings_from({"model": {"path": "/nowhere", "quantization": "fp8"}})
    with pytest.raises(ConfigError) as caught:
        resolve(settings, CPU_MACHINE)
    assert [problem.path for problem in caught.value.problems] == ["model.quantization"]


def test_the_file_of_a_resolved_value_resolves_to_the_same_on_another_machine(tmp_path: Path) -> None:
    make_oracle_draft(tmp_path / "draft", make_tiny_moe(tmp_path / "target"))
    asked_for = settings_from({
        "model": {"path": str(tmp_path / "target")},
        "speculation": {"method": "chain", "draft_path": str(tmp_path / "draft")},
        "tiers": {3: {"name": "gold", "default": True}},
    })  # fmt: skip
    resolved = resolve(asked_for, SLOW_CPU_MACHINE)
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(resolved.as_file()))
    again = resolve(load_settings(file), GPU_NODE)
    assert (again.device, again.dtype) == (resolved.device, resolved.dtype) == ("cpu", "float32")
    assert (again.model, again.draft) == (resolved.model, resolved.draft)
    assert again.as_file() == resolved.as_file()


@pytest.mark.parametrize("served_name", [None, "public"])
def test_clients_know_the_model_by_its_name_wherever_its_weights_are(served_name: str | None, tmp_path: Path) -> None:
    model = {"path": str(make_tiny_moe(tmp_path / "target")), "served_name": served_name}
    resolved = resolve(settings_from({"model": model}), CPU_MACHINE)
    assert settings_from(resolved.as_file()).model.public_name == (served_name or "target")


def test_this_machine_is_asked_once_it_is_needed() -> None:
    assert isinstance(THIS_MACHINE.has_gpu(), bool)
    assert isinstance(THIS_MACHINE.has_bfloat16_units(), bool)
