"""The plots of an evaluation: acceptance by row, reliability and the two sweeps (DSpark paper, figures 2, 4, 5, 6)."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparktier.configs.files import staged
from sparktier.drafter.evaluation.evaluate import Evaluation, Row
from sparktier.drafter.evaluation.rounds import conditional_acceptance


def write_figures(folder: Path, evaluations: Sequence[Evaluation]) -> list[Path]:
    """Write one PNG per figure, a line per evaluation (reliability: per row, of the first); return their paths."""
    draws: dict[str, Callable[[Axes], None]] = {
        "acceptance_by_row": lambda axes: _acceptance(axes, evaluations),
        "length_sweep": lambda axes: _sweep(axes, evaluations, Evaluation.length_sweep, "longest", "drafted tokens"),
        "confidence_sweep": lambda axes: _confidence(axes, evaluations),
        "reliability": lambda axes: _reliability(axes, evaluations[0]),
    }
    return [_write(folder / f"{name}.png", draw) for name, draw in draws.items()]


def _write(path: Path, draw: Callable[[Axes], None]) -> Path:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.legend(fontsize="small")
    with staged(path) as part:
        figure.savefig(part, format="png", dpi=120)
    return path


def _column(rows: Sequence[Row], key: str) -> list[float]:
    return [value for row in rows if isinstance(value := row[key], int | float)]


def _name(evaluation: Evaluation) -> str:
    return f"{evaluation.drafter} {evaluation.dataset} T={evaluation.temperature:g} seed {evaluation.seed}"


def _acceptance(axes: Axes, evaluations: Sequence[Evaluation]) -> None:
    for evaluation in evaluations:
        shares = conditional_acceptance(evaluation.rounds())
        axes.plot(range(1, len(shares) + 1), shares, marker="o", label=_name(evaluation))
    axes.set(xlabel="row of the draft block", ylabel="accepted, given all before", ylim=(0, 1))


def _sweep(
    axes: Axes, evaluations: Sequence[Evaluation], rows_of: Callable[[Evaluation], list[Row]], x: str, label: str
) -> None:
    for evaluation in evaluations:
        rows = rows_of(evaluation)
        axes.plot(_column(rows, x), _column(rows, "accepted_length"), marker="o", label=_name(evaluation))
    axes.set(xlabel=label, ylabel="accepted length (tokens per round)")


def _confidence(axes: Axes, evaluations: Sequence[Evaluation]) -> None:
    for evaluation in evaluations:
        rows = evaluation.confidence_sweep()
        shares, lengths = _column(rows, "accept_rate_frac"), _column(rows, "accepted_length")
        axes.plot(shares, lengths, marker="o", label=_name(evaluation))
    axes.set(xlabel="share of verified drafts accepted", ylabel="accepted length (tokens per round)")


def _reliability(axes: Axes, evaluation: Evaluation) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for row, curve in enumerate(evaluation.curves()):
        axes.plot(curve.predicted, curve.observed, marker=".", label=f"row {row + 1}, ECE {curve.ece_frac:.1%}")
    axes.set(xlabel="predicted survival", ylabel="observed", xlim=(0, 1), ylim=(0, 1), title=_name(evaluation))
