"""Shows the rows of a speculation report: a table on the terminal, and a plot in a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from sparktier.configs.files import staged

_COLUMNS = {
    "prompts": "{}",
    "temperature": "{:g}",
    "batch": "{}",
    "rung": "{}",
    "rows": "{:.1f}",
    "accepted_length": "{:.2f}",
    "tok_s": "{:.1f}",
    "ratio_to_off": "{:.2f}",
    "ratio_to_best": "{:.2f}",
    "realised_frac": "{:.2f}",
    "draft_ms": "{:.1f}",
    "verify_ms": "{:.1f}",
    "overhead_ms": "{:.1f}",
}
Rows = Sequence[Mapping[str, Any]]


def print_table(rows: Rows, console: Console) -> None:
    """Print one line for each case and rung: medians, and the 95% intervals of the ratios."""
    table = Table(*_COLUMNS)
    for row in rows:
        cells = ["" if row[key] is None else form.format(row[key]) for key, form in _COLUMNS.items()]
        for key in ("ratio_to_off", "ratio_to_best", "realised_frac"):
            if row[key] is not None:
                cells[list(_COLUMNS).index(key)] += f" ({row[f'{key}_low']:.2f}-{row[f'{key}_high']:.2f})"
        table.add_row(*cells)
    console.print(table)


def write_plot(rows: Rows, path: Path) -> None:
    """Write a PNG: speed-up over `off` by batch size, one line per rung, one panel per prompt set and temperature."""
    panels = list(dict.fromkeys((row["prompts"], row["temperature"]) for row in rows))
    figure = Figure(figsize=(4.5 * len(panels), 3.8), layout="constrained")
    for axes, (prompts, temperature) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        shown = [row for row in rows if (row["prompts"], row["temperature"]) == (prompts, temperature)]
        for rung in dict.fromkeys(row["rung"] for row in shown):
            line = [row for row in shown if row["rung"] == rung and row["ratio_to_off"] is not None]
            middle = [row["ratio_to_off"] for row in line]
            below = [row["ratio_to_off"] - row["ratio_to_off_low"] for row in line]
            above = [row["ratio_to_off_high"] - row["ratio_to_off"] for row in line]
            batches = [row["batch"] for row in line]
            axes.errorbar(batches, middle, yerr=[below, above], marker="o", capsize=3, label=rung)
        axes.set(title=f"{prompts}, temperature {temperature:g}", xlabel="users at once", ylabel="speed over off")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes := sorted({row["batch"] for row in shown}), [str(size) for size in sizes])
        axes.legend(fontsize="small")
    with staged(path) as part:
        figure.savefig(part, format="png", dpi=120)
