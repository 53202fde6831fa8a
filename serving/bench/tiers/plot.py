"""Plots promises kept against tokens per second, one panel for each cell."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparktier.cluster.simulator.policies import STATIC
from sparktier.configs.files import staged

Rows = Sequence[Mapping[str, Any]]
_SHOWN = {"tiered": ("o", "tab:red"), "floors": ("s", "tab:blue"), "adaserve": ("^", "tab:green")}


def write_plot(worth: Rows, path: Path) -> None:
    """Write a PNG by the rows of `worth.worth`; the line joins equal and fixed weights."""
    groups = list(dict.fromkeys((row["table"], row["users"], row["strict_frac"]) for row in worth))
    cells = [
        _by_factor([row for row in worth if (row["table"], row["users"], row["strict_frac"]) == group])
        for group in groups
    ]
    widest = max(map(len, cells))
    figure = Figure(figsize=(3.2 * widest, 2.7 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), widest, squeeze=False)
    for line, (table, users, frac), found in zip(panels, groups, cells, strict=True):
        for axes in line[len(found) :]:
            axes.set_axis_off()
        for axes, (factor, cell) in zip(line, found.items(), strict=False):
            _panel(axes, cell)
            axes.set_title(f"{table}, {users} users, {frac:.0%} strict, promise {factor:g}", fontsize=8)
    panels[0][0].legend(fontsize=7)
    figure.supxlabel("tokens per second, of equal weights", fontsize=9)
    figure.supylabel("promises kept", fontsize=9)
    with staged(path) as part:
        # Without the version of the library, the same figures are the same bytes.
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})


def _by_factor(rows: Rows) -> dict[float, Rows]:
    """The rows of each promise factor, lowest first."""
    return {
        factor: [row for row in rows if row["promise_factor"] == factor]
        for factor in sorted({row["promise_factor"] for row in rows})
    }


def _panel(axes: Any, cell: Rows) -> None:
    fixed = sorted(
        (row["throughput_frac"], row["attainment_frac"])
        for row in cell
        if row["policy"] == "blind" or row["policy"].startswith(STATIC)
    )
    axes.plot(*np.array(fixed).T, ".-", color="grey", linewidth=0.8, label="equal and fixed weights")
    for name, (marker, colour) in _SHOWN.items():
        for row in cell:
            if row["policy"] == name:
                axes.plot(row["throughput_frac"], row["attainment_frac"], marker, color=colour, label=name)
    axes.set_ylim(0.0, 1.03)
    axes.tick_params(labelsize=7)
