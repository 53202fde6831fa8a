"""Compares predicted lines with the paper's, point by point, and draws both as its figures 7 and 8."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparktier.configs.files import staged

MODELS = {"flash": "DeepSeek-V4-Flash", "pro": "DeepSeek-V4-Pro"}
KINDS = ("fitted", "predicted")
RATIOS_AT = (20, 50, 100, 150, 200)
SPEEDS = {"flash": (80.0, 120.0), "pro": (35.0, 50.0)}
NOMINAL = {("flash", 120.0), ("pro", 50.0)}
_THROUGHPUT = "fig8_throughput_[requests_per_gpu,tok_s_gpu]"
_BUDGET = "fig8_verify_budget_[requests_per_gpu,tokens_per_request_incl_bonus]"
_FRONTIER = "fig7_fitted_frontier_[tok_s_user,tok_s_gpu]"
_COLOURS = {"paper": "black", "fitted": "tab:red", "predicted": "tab:blue"}

Curves = Mapping[str, Any]


def scored(figures: Curves, kept: Curves, sweep: Curves) -> dict[str, Any]:
    """Return a row for each anchor: what the paper has, what each table predicts, and by how much that is off."""
    rows: list[dict[str, Any]] = []
    for model in MODELS:
        rows += _ratio_rows(figures, kept, model) + _frontier_rows(figures, kept, model)
        rows.append(_budget_row(figures, kept["dspark"], {kind: f"{model}-{kind}" for kind in KINDS}, model))
    swept = [
        {"case": case, **_sweep_row(figures, line, case.partition(",")[0])} for case, line in sweep["fitted"].items()
    ]
    return {"rows": rows, "sweep": swept}


def write_plot(figures: Curves, kept: Curves, path: Path) -> None:
    """Write a PNG: a line of panels for each model."""
    figure = Figure(figsize=(12.0, 6.8), layout="constrained")
    for panels, (model, name) in zip(figure.subplots(2, 3), MODELS.items(), strict=True):
        _frontier_panel(panels[0], figures, kept, model)
        _throughput_panel(panels[1], figures, kept, model)
        _budget_panel(panels[2], figures, kept, model)
        panels[0].set_title(f"{name}: throughput by speed (figure 7)", fontsize=9)
        panels[1].set_title("throughput by load (figure 8)", fontsize=9)
        panels[2].set_title("rows verified of a request (figure 8)", fontsize=9)
        panels[1].legend(fontsize=7)
    with staged(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})


def _ratio_rows(figures: Curves, kept: Curves, model: str) -> list[dict[str, Any]]:
    rows = []
    for at in RATIOS_AT:
        paper = _at(figures[_THROUGHPUT][f"{model}_ds"], at) / _at(figures[_THROUGHPUT][f"{model}_mtp"], at)
        ours = {
            kind: _at(kept["dspark"][f"{model}-{kind}"], at) / _at(kept["mtp1"][f"{model}-{kind}"], at)
            for kind in KINDS
        }
        rows.append(
            _row(model, f"gain in throughput at {at} requests a GPU", _percent(paper), ours, _percent, "points")
        )
    return rows


def _frontier_rows(figures: Curves, kept: Curves, model: str) -> list[dict[str, Any]]:
    rows = []
    for speed in SPEEDS[model]:
        base, ours = figures["fig7_anchors"][f"{model}_{speed:g}"]
        found, faster = {}, {}
        for kind in KINDS:
            mtp, dspark = (kept[way][f"{model}-{kind}"] for way in ("mtp1", "dspark"))
            at_speed = _throughput_at(mtp, speed)
            gained = _throughput_at(dspark, speed)
            found[kind] = None if at_speed is None or gained is None else gained / at_speed
            matched = None if at_speed is None else _speed_at(dspark, at_speed)
            faster[kind] = None if matched is None else matched / speed
        caveat = "nominal, by the paper: MTP-1 sustains next to no load there" if (model, speed) in NOMINAL else ""
        name = f"gain in throughput at {speed:g} tok/s/user"
        rows.append(_row(model, name, _percent(ours / base), found, _percent, "points") | {"caveat": caveat})
        equal = next(value for key, value in figures["fig7_anchors"].items() if key == f"{model}_matched_{base}")
        name = f"gain in speed at the throughput of MTP-1 at {speed:g} tok/s/user"
        rows.append(_row(model, name, _percent(equal[1] / speed), faster, _percent, "points") | {"caveat": caveat})
    return rows


def _budget_row(figures: Curves, lines: Curves, names: Mapping[str, str], model: str) -> dict[str, Any]:
    errors = {kind: _budget_error(figures, lines[name], model) for kind, name in names.items()}
    named = {f"{kind}_error": round(error, 3) for kind, error in errors.items()}
    return {"model": model, "anchor": "rows of a request, median absolute error", "unit": "tokens", **named}


def _budget_error(figures: Curves, line: Any, model: str) -> float:
    paper = np.array([point for point in figures[_BUDGET][f"{model}_ds_b"] if 5 <= point[0] <= 200])
    ours = np.interp(paper[:, 0], *np.array(line)[:, [0, 2]].T)
    return float(np.median(np.abs(ours - paper[:, 1])))


def _sweep_row(figures: Curves, line: Any, model: str) -> dict[str, Any]:
    paper = [_at(figures[_THROUGHPUT][f"{model}_ds"], at) for at in RATIOS_AT]
    errors = [round(100 * (_at(line, at) / one - 1), 1) for at, one in zip(RATIOS_AT, paper, strict=True)]
    return {"throughput_error_percent": errors, "budget_error_tokens": round(_budget_error(figures, line, model), 3)}


def _row(model: str, anchor: str, paper: float | None, ours: Mapping[str, float | None], form: Any, unit: str) -> Any:
    row: dict[str, Any] = {"model": model, "anchor": anchor, "unit": unit, "paper": paper}
    for kind in KINDS:
        value = form(ours[kind])
        row[kind] = value
        row[f"{kind}_error"] = None if value is None or paper is None else round(value - paper, 1)
    return row


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else round(100 * (ratio - 1), 1)


def _at(line: Any, requests: float) -> float:
    points = np.array(line)
    return float(np.interp(requests, points[:, 0], points[:, 1]))


def _throughput_at(line: Any, speed: float) -> float | None:
    """Throughput at a speed per user; None where the line doesn't reach it."""
    points = np.array(line)
    speeds = points[:, 1] / points[:, 0]
    if not speeds.min() <= speed <= speeds.max():
        return None
    order = np.argsort(speeds)
    return float(np.interp(speed, speeds[order], points[order, 1]))


def _speed_at(line: Any, tok_s: float) -> float | None:
    points = np.array(line)
    if not points[:, 1].min() <= tok_s <= points[:, 1].max():
        return None
    return float(np.interp(tok_s, points[:, 1], points[:, 1] / points[:, 0]))


def _frontier_panel(axes: Any, figures: Curves, kept: Curves, model: str) -> None:
    for way, style in (("mtp", "--"), ("dspark", "-")):
        axes.plot(*np.array(figures[_FRONTIER][f"{model}_{way}"]).T, style, color=_COLOURS["paper"])
    for kind in KINDS:
        for way, style in (("mtp1", "--"), ("dspark", "-")):
            points = np.array(kept[way][f"{model}-{kind}"])
            points = points[points[:, 0] <= 200]
            axes.plot(points[:, 1] / points[:, 0], points[:, 1], style, color=_COLOURS[kind])
    axes.set_xlabel("tok/s of a user", fontsize=8)
    axes.set_ylabel("tok/s of a GPU", fontsize=8)


def _throughput_panel(axes: Any, figures: Curves, kept: Curves, model: str) -> None:
    paper = figures[_THROUGHPUT]
    axes.plot(*np.array(paper[f"{model}_mtp"]).T, "--", color=_COLOURS["paper"], label="paper, MTP-1")
    axes.plot(*np.array(paper[f"{model}_ds"]).T, color=_COLOURS["paper"], label="paper, DSpark")
    for kind in KINDS:
        axes.plot(*np.array(kept["mtp1"][f"{model}-{kind}"]).T, "--", color=_COLOURS[kind], label=f"{kind}, MTP-1")
        points = np.array(kept["dspark"][f"{model}-{kind}"])
        axes.plot(points[:, 0], points[:, 1], ".-", color=_COLOURS[kind], label=f"{kind}, DSpark")
    axes.set_xlim(0, 210)
    axes.set_xlabel("requests a GPU", fontsize=8)


def _budget_panel(axes: Any, figures: Curves, kept: Curves, model: str) -> None:
    axes.plot(*np.array(figures[_BUDGET][f"{model}_ds_b"]).T, color=_COLOURS["paper"])
    for kind in KINDS:
        points = np.array(kept["dspark"][f"{model}-{kind}"])
        axes.plot(points[:, 0], points[:, 2], ".-", color=_COLOURS[kind])
    axes.set_ylim(1, 6)
    axes.set_xlabel("requests a GPU", fontsize=8)
