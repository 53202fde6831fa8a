"""Shows the rows of a load report: a table on the terminal, a plot, and each request as a line of JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from sparktier.configs.files import staged
from sparktier.serving.bench.serve.asking import Asked

Rows = Sequence[Mapping[str, Any]]
_COLUMNS = (
    "load",
    "tier",
    "requests",
    "attained_tok_s_p50",
    "attained_tok_s_p5",
    "attainment_frac",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "goodput_tok_s",
    "throughput_tok_s",
    "errors",
    "short",
)
_PANELS = {"attainment_frac": "promises kept", "attained_tok_s_p50": "tok/s a user", "ttft_ms_p50": "first token, ms"}


def print_table(rows: Rows, console: Console) -> None:
    """Print one line for each load and tier; attainment with its 95% interval."""
    table = Table(*_COLUMNS)
    for row in rows:
        cells = ["" if row[key] is None else f"{row[key]:g}" if key != "tier" else row[key] for key in _COLUMNS]
        if row["attainment_frac"] is not None:
            interval = f" ({row['attainment_frac_low']:.2f}-{row['attainment_frac_high']:.2f})"
            cells[_COLUMNS.index("attainment_frac")] += interval
        table.add_row(*cells)
    console.print(table)


def write_plot(rows: Rows, path: Path) -> None:
    """Write a PNG: promises kept, speed and wait for the first token by load, one line a tier."""
    figure = Figure(figsize=(4.2 * len(_PANELS), 3.6), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for tier in dict.fromkeys(row["tier"] for row in rows):
            line = [row for row in rows if row["tier"] == tier and row[key] is not None]
            if not line:
                continue
            middle = [row[key] for row in line]
            below = [max(row[key] - row[f"{key}_low"], 0.0) for row in line]
            above = [max(row[f"{key}_high"] - row[key], 0.0) for row in line]
            loads = [row["load"] for row in line]
            axes.errorbar(loads, middle, yerr=[below, above], marker="o", capsize=3, label=tier)
        axes.set(xlabel="requests per second", ylabel=label, ylim=(0, None))
    figure.get_axes()[1].legend(fontsize="small")
    with staged(path) as part:
        figure.savefig(part, format="png", dpi=120)


def write_requests(asked: Mapping[float, Sequence[Asked]], path: Path) -> None:
    """Write each request of each load as one line, without its text."""
    with staged(path) as part, part.open("w", encoding="utf-8") as file:
        for load, requests in asked.items():
            for each in requests:
                file.write(json.dumps({"load": load, **_line(each)}) + "\n")


def _line(asked: Asked) -> dict[str, Any]:
    arrival = asked.offered.arrival
    return {
        "at_ms": arrival.at_ms,
        "tenant": arrival.tenant,
        "tier": arrival.tier,
        "max_tokens": asked.offered.max_tokens,
        "prompt_tokens": asked.prompt_tokens,
        "tokens": asked.result.tokens,
        "ttft_ms": asked.result.ttft_ms,
        "tok_s": asked.result.tok_s,
        "client_ttft_ms": asked.client_ttft_ms,
        "client_tok_s": asked.client_tok_s,
        "ended_ms": asked.ended_ms,
        "late_ms": asked.late_ms,
        "error": asked.result.error,
        "downgraded": asked.result.downgraded,
    }
