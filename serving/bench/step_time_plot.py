"""A plot of a step-time fit: predicted against measured times by batch size, and the errors on unseen windows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sparktier.configs.files import staged
from sparktier.serving.bench.step_time_fit import Fit, Window, predicted_ms


def write_fit_plot(fit: Fit, windows: Sequence[Window], path: Path) -> None:
    """Write a PNG of two panels. Raises ArtifactError when it can't be written."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    times, errors = figure.subplots(1, 2)
    measured = np.array([window.step_ms for window in windows]) / fit.drift_frac
    predicted = np.array([predicted_ms(fit.table, window) for window in windows])
    sizes = np.array([max(1, round(window.requests)) for window in windows])
    for size in sorted(set(sizes.tolist())):
        of_size = sizes == size
        times.plot(predicted[of_size], measured[of_size], ".", label=f"{size} requests")
        errors.plot(np.flatnonzero(of_size), 100 * fit.unseen_error_frac[of_size], ".", label=f"{size} requests")
    ends = [min(predicted.min(), measured.min()), max(predicted.max(), measured.max())]
    times.plot(ends, ends, color="grey", linewidth=0.8)
    times.set(title="a step, drift divided out", xlabel="table, ms", ylabel="measured, ms")
    times.set_xscale("log", base=2)
    times.set_yscale("log", base=2)
    for axis in (times.xaxis, times.yaxis):
        axis.set_major_formatter("{x:g}")
    times.legend(fontsize="small")
    errors.axhline(0.0, color="grey", linewidth=0.8)
    errors.set(title="error on a window left out", xlabel="window, in order of time", ylabel="table over measured, %")
    with staged(path) as part:
        figure.savefig(part, format="png", dpi=120)
