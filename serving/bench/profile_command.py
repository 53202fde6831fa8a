"""Runs `sparktier profile`: starts the deployment, measures its steps, and writes the table that explains them."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.files import write_json
from sparktier.configs.report import Meta, report_meta, write_report
from sparktier.configs.settings.settings import Settings
from sparktier.configs.step_times import StepTimeTable, write_table
from sparktier.serving.bench.measured_replica import deployed
from sparktier.serving.bench.measurements import rungs_of
from sparktier.serving.bench.speculation_command import require_ladder
from sparktier.serving.bench.step_time_fit import Window, fit_table
from sparktier.serving.bench.step_time_plot import write_fit_plot
from sparktier.serving.bench.step_windows import Clock, ProfileLoad, measure
from sparktier.serving.deployment.resolved import resolve
from sparktier.serving.deployment.table_key import table_key

_CONTEXT_TOKENS = 2048
_WALL = Clock(time.monotonic, time.sleep)


def run(
    settings: Settings,
    *,
    config: Path,
    overrides: Sequence[str],
    sizes: Sequence[int],
    repeats: int,
    window_s: float,
    seed: int,
    out: Path,
    report: Path | None,
) -> int:
    """Measure the grid of rungs and `sizes` (rising), write the table and what goes beside it; return the exit status.

    `report` gets every window, before the fit, so that a run whose windows are refused is not lost.

    Raises:
        ConfigError: the configuration has no ladder, holds fewer users, or there is but one size.
        ArtifactError: the weights are not on this machine, or a file can't be written.
        ReplicaError: the deployment did not start, a request failed, or no table explains what was measured.
    """
    require_ladder(settings, max(sizes))
    _require_sizes(sizes)
    console = Console(stderr=True)
    key = table_key(resolve(settings, progress=console.print))
    meta = report_meta("profile", seed)
    console.print(f"load average {meta.load_average[0]:.2f}; other work on this machine blurs the figures")
    rungs = rungs_of(settings.speculation.method)
    context_tokens, groups = settings.model.context_tokens or _CONTEXT_TOKENS, settings.replicas.attention_data_parallel
    load = ProfileLoad(sizes, repeats, window_s, seed, context_tokens, groups)
    with deployed(config, overrides) as replica:
        measured = measure(replica, rungs, load, clock=_WALL, log=console.print)
    if report is not None:
        write_report(report, meta, [asdict(window) for window in measured.windows])
    fit = fit_table(measured.windows, measured.prefill_ms, key=key, source=_source(meta, load))
    write_table(out, fit.table)
    write_json(out.with_suffix(".sps.json"), _sps(fit.table, measured.windows))
    write_fit_plot(fit, measured.windows, out.with_suffix(".png"))
    console.print(
        f"{out}: {len(measured.windows)} windows, error on one left out {fit.table.error_frac_p50:.1%} at the median, "
        f"{fit.table.error_frac_p90:.1%} at the 90th percentile; the machine was {fit.drift_frac.min():.2f} to "
        f"{fit.drift_frac.max():.2f} times as slow as at the median"
    )
    return 0


def _require_sizes(sizes: Sequence[int]) -> None:
    if len(sizes) < 2:
        problem = Problem("--batch", "must be given two different sizes or more", str(list(sizes)), "Add --batch 4.")
        raise ConfigError([problem])


def _source(meta: Meta, load: ProfileLoad) -> str:
    """Where the figures come from, as a table says it."""
    sizes = ", ".join(map(str, load.sizes))
    return (
        f"sparktier profile, {meta.started_at.isoformat()}, commit {meta.commit or 'unknown'}, {meta.machine}, load "
        f"average {meta.load_average[0]:.2f}, {sizes} requests, {load.repeats} passes of windows of {load.window_s:g} s"
    )


def _sps(table: StepTimeTable, windows: Sequence[Window]) -> dict[str, float | list[int] | list[float]]:
    """SGLang's form of the table, on its highest rung, as far as twice of what was measured."""
    requests = max(round(2 * window.requests) for window in windows)
    rows = max(round(2 * window.rows) for window in windows)
    return StepTimeModel(table).to_sps(rung=max(table.draft_ms), most_requests=requests, most_rows=rows)
