"""Serves the demo with promises that fit this machine (`sparktier demo`).

The first start measures what steps cost, by a short `sparktier profile`; later ones find its table in the cache. A
machine whose steps no table explains serves without one, and its promises are labels.
"""

import hashlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from rich.console import Console

from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.errors import ReplicaError
from sparktier.configs.settings.settings import Settings
from sparktier.configs.step_times import StepTimeTable, read_table
from sparktier.serving.bench import profile_command
from sparktier.serving.demo_model.cache import default_cache_dir
from sparktier.serving.deployment.resolved import resolve
from sparktier.serving.deployment.table_key import table_key

# A promise is this part of what one user alone gets without drafts, so that a few users and slower hours fit.
_PROMISED_FRAC = 0.35
_SIZES, _REPEATS, _WINDOW_S = (1, 4), 2, 2.0
_console = Console(stderr=True)


def promise_tok_s(table: StepTimeTable) -> float:
    """Return a speed that this machine keeps for a few users at once, in whole tokens a second above one."""
    alone_ms = float(StepTimeModel(table).step_ms(rung=0, requests=1, rows=np.array([1]))[0])
    promised = _PROMISED_FRAC * 1000.0 / alone_ms
    return float(math.floor(promised)) if promised >= 1 else math.floor(100 * promised) / 100


def table_path(settings: Settings, config: Path) -> Path:
    """Return where the cache has the table of this configuration on this machine."""
    key = table_key(resolve(settings, progress=_console.print)).model_dump_json()
    digest = hashlib.sha256(key.encode() + config.read_bytes()).hexdigest()
    return default_cache_dir() / "step-times" / f"{config.stem}-{digest[:16]}.json"


def fitting(settings: Settings, config: Path) -> list[str]:
    """Return the options of `sparktier up` by which its promises fit this machine; measures it where it never was."""
    path = table_path(settings, config)
    if not path.exists():
        _console.print("Measuring what a step costs on this machine, once; this takes a minute or two.")
        try:
            profile_command.run(
                settings,
                config=config,
                overrides=[],
                sizes=_SIZES,
                repeats=_REPEATS,
                window_s=_WINDOW_S,
                seed=0,
                out=path,
                report=None,
            )
        except ReplicaError as error:
            _console.print(f"Promises are labels this time: {error}")
            return []
    promised = promise_tok_s(read_table(path))
    tiers = [tier_id for tier_id, tier in settings.tiers.items() if tier.promise_tok_s is not None]
    chosen = [f"--set=tiers.{tier_id}.promise_tok_s={promised:g}" for tier_id in tiers]
    for tier_id in tiers:
        _console.print(
            f"Tier {settings.tiers[tier_id].name} promises {promised:g} tok/s, by {path} (delete it to measure anew)"
        )
    return [f"--set=speculation.step_times_path={path}", *chosen]


def run(settings: Settings, *, config: Path, overrides: Sequence[str]) -> NoReturn:
    """Become `sparktier up` of this configuration; `overrides` (KEY=VALUE) come after what is measured.

    Raises:
        ArtifactError: the weights are not on this machine, or the table can't be written.
    """
    options = [*fitting(settings, config), *(f"--set={override}" for override in overrides)]
    os.execv(sys.executable, [sys.executable, "-m", "sparktier.serving.cli.main", "up", str(config), *options])
