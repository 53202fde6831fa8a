"""Every SGLang symbol that our code names is in the manifest, each once and with a reason."""

from pathlib import Path

import pytest

from sparktier.serving.engine.upstream.manifest import USES
from sparktier.serving.engine.upstream.source import installed_root, is_module
from support.sglang_uses import sglang_symbols

ENGINE = Path(__file__).resolve().parents[2] / "serving" / "engine"
MANIFEST = {use.symbol for use in USES}


def installed_module(name: str) -> bool:
    root = installed_root()
    assert root is not None
    return is_module(root, name)


def covered(symbol: str) -> bool:
    """A class in the manifest covers its attributes, as far as they are its own."""
    module, _, name = symbol.partition(":")
    parts = name.split(".")
    return (
        any(f"{module}:{'.'.join(parts[:end])}" in MANIFEST for end in range(1, len(parts) + 1)) or module in MANIFEST
    )


@pytest.mark.parametrize(
    "file",
    [file for file in sorted(ENGINE.rglob("*.py")) if file.name != "manifest.py"],
    ids=lambda file: str(file.relative_to(ENGINE)),
)
def test_every_symbol_named_is_in_the_manifest(file: Path) -> None:
    missing = sorted(symbol for symbol in sglang_symbols(file.read_text(), installed_module) if not covered(symbol))
    lines = "".join(f'\n    Use("{symbol}", "why"),' for symbol in missing)
    assert not missing, f"add to serving/engine/upstream/manifest.py, then run upstream --record:{lines}"


def test_the_manifest_names_each_symbol_once_and_why() -> None:
    assert len(MANIFEST) == len(USES)
    assert all(use.why for use in USES)


def test_the_scanner_sees_each_way_of_naming_a_symbol() -> None:
    source = """
from sglang.srt.plugins import load_plugins
from sglang.srt.ray import engine as ray_engine
import sglang.srt.server_args as args
def late():
    from sglang.srt.platforms.interface import SRTPlatform as Base
    class Mine(Base): ...
    ray_engine.SchedulerActor = None
    ray_engine.RayEngine._launch_subprocesses()
    args.ServerArgs()
    hook("sglang.srt.managers.scheduler.Scheduler.run_batch")
    hook("sglang.srt.managers.scheduler:Scheduler")
    other("sglang", "see sglang.srt.x for more")
"""
    assert sglang_symbols(source, installed_module) == {
        "sglang.srt.plugins:load_plugins",
        "sglang.srt.ray.engine:SchedulerActor",
        "sglang.srt.ray.engine:RayEngine",
        "sglang.srt.ray.engine:RayEngine._launch_subprocesses",
        "sglang.srt.server_args:ServerArgs",
        "sglang.srt.platforms.interface:SRTPlatform",
        "sglang.srt.managers.scheduler:Scheduler.run_batch",
        "sglang.srt.managers.scheduler:Scheduler",
    }
