"""What a device makes of `model.dtype`."""

import pytest

from sparktier.configs.loading.loader import settings_from
from sparktier.kernels import cpu_features as cpu_units
from sparktier.serving.deployment.device import with_dtype_of
from sparktier.serving.deployment.engine_args import Device


@pytest.mark.parametrize(("dtype", "device", "units", "becomes"), [
    ("auto", "cpu", False, "float32"), ("auto", "cpu", True, "auto"), ("auto", "cuda", False, "auto"),
    ("bfloat16", "cpu", False, "bfloat16"),
])  # fmt: skip
def test_auto_is_float32_on_a_cpu_that_is_slow_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, dtype: str, device: Device, units: bool, becomes: str
) -> None:
    monkeypatch.setattr(cpu_units, "has_bfloat16_units", lambda: units)
    settings = settings_from({"model": {"path": "org/name", "dtype": dtype}})
    assert with_dtype_of(settings, device).model.dtype == becomes
