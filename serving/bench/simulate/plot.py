"""Plots a simulation as figures 7 and 8 of the DSpark paper: throughput by speed and by load, and promises kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparktier.configs.files import staged

Rows = Sequence[Mapping[str, Any]]


def write_plot(rows: Rows, path: Path) -> None:
    """Write a PNG; points are means over seeds."""
    figure = Figure(figsize=(13.0, 7.0), layout="constrained")
    panels = figure.subplots(2, 3)
    promised = list(dict.fromkeys(row["tier"] for row in rows if row["promise_tok_s"] is not None))
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        loads = sorted({row["load"] for row in own})
        style = {"label": policy, "marker": ".", "linewidth": 2.2 if policy == "sparktier" else 1.0}
        by_gpu = [_mean(own, load, "throughput_tok_s") / own[0]["replicas"] for load in loads]
        speed = [_mean(own, load, "attained_tok_s_p50") for load in loads]
        panels[0][0].plot(speed, by_gpu, **style)
        panels[0][1].plot(loads, by_gpu, **style)
        panels[0][2].plot(loads, [_mean(own, load, "rows_per_request") for load in loads], **style)
        goodput = [sum(_mean(own, load, "goodput_tok_s", tier) for tier in promised) for load in loads]
        panels[1][0].plot(loads, goodput, **style)
        for axes, tier in zip(panels[1][1:], promised, strict=False):
            axes.plot(loads, [_mean(own, load, "attainment_frac", tier) for load in loads], **style)
    titles = ("throughput by speed (as figure 7)", "throughput by load (as figure 8)", "rows verified of a request")
    for axes, title, x, y in zip(
        panels[0],
        titles,
        ("median tok/s of a user", "requests/s a replica", "requests/s a replica"),
        ("tok/s a replica", "tok/s a replica", "rows"),
        strict=True,
    ):
        _named(axes, title, x, y)
    _named(panels[1][0], "goodput of promised tiers", "requests/s a replica", "tok/s")
    for axes, tier in zip(panels[1][1:], promised, strict=False):
        _named(axes, f"promises kept, {tier}", "requests/s a replica", "of all offered")
        axes.set_ylim(-0.03, 1.03)
    for axes in panels[1][1 + len(promised) :]:
        axes.set_axis_off()
    panels[0][1].legend(fontsize=7)
    with staged(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})


def _named(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)


def _mean(rows: Rows, load: float, name: str, tier: str | None = None) -> float:
    values = [
        row[name] for row in rows if row["load"] == load and row[name] is not None and tier in (None, row["tier"])
    ]
    return float(np.mean(values)) if values else float("nan")
