"""DSpark's lines of figures 7 and 8 of its paper, predicted from the frozen fit and assumptions, and then scored.

`predict` steps a simulated engine at each number of requests; `score` compares with the paper's figures (a JSON that is
not part of the project) and draws both. Assumptions are docs/measurements/paper/assumptions.json.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sparktier.cluster.simulator.policies import policy_of
from sparktier.cluster.simulator.published_text import (
    REPORTED,
    PublishedTexts,
    TextFigures,
    published_figures,
)
from sparktier.cluster.simulator.sim_engine import EngineLimits, SimEngine, SimRequest, SimStep
from sparktier.cluster.simulator.users import serve
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.verify_planner import PaceRules
from sparktier.configs.files import read_json, sha256_of, write_json
from sparktier.configs.step_times import StepTimeTable, reference_table

PAPER = Path(__file__).resolve().parents[2] / "docs" / "measurements" / "paper"
ASSUMED, PREDICTED, SWEEP, SCORED = (
    PAPER / f"{name}.json" for name in ("assumptions", "predictions", "sweep", "errors")
)
KINDS = ("fitted", "predicted")
MODELS = ("flash", "pro")
Line = list[list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("predict", "sweep", "score"))
    parser.add_argument("--figures", type=Path, help="JSON of the paper's figures; `score` alone reads it")
    options = parser.parse_args()
    assumed = read_json(ASSUMED, "the assumptions")
    if options.step == "predict":
        write_json(PREDICTED, predicted(assumed))
    elif options.step == "sweep":
        write_json(SWEEP, swept(assumed))
    else:
        from paper_plot import scored, write_plot

        figures, kept = json.loads(options.figures.read_text()), read_json(PREDICTED, "the predictions")
        write_json(SCORED, scored(figures, kept, read_json(SWEEP, "the sweep")))
        write_plot(figures, kept, PAPER.with_name("paper-curves.png"))
    return 0


def predicted(assumed: dict[str, Any]) -> dict[str, Any]:
    """Return both models' lines by both tables."""
    texts = published_figures(REPORTED)
    lines = {
        f"{model}-{kind}": line_of(reference_table(f"v4-{model}-{kind}"), texts, assumed)
        for model in MODELS
        for kind in KINDS
    }
    tau1 = read_json(PAPER / "fit.json", "the fit")["tau1"]
    mtp = {
        f"{model}-{kind}": mtp1_line(reference_table(f"v4-{model}-{kind}"), tau1) for model in MODELS for kind in KINDS
    }
    columns = ["requests_per_gpu", "tok_s_gpu", "rows_per_request", "accepted_length"]
    return {"sha256": {ASSUMED.name: sha256_of(ASSUMED)}, "columns": columns, "dspark": lines, "mtp1": mtp}


def swept(assumed: dict[str, Any]) -> dict[str, Any]:
    """Return the fitted lines at other acceptances and draft costs: nothing of this is scored."""
    texts = published_figures(REPORTED)
    found = {}
    for model in MODELS:
        table = reference_table(f"v4-{model}-fitted")
        for share in (0.0, 0.25, 0.75, 1.0):
            shares = {"structured": share, "prose": 1.0 - share}
            classes = {name: of.model_copy(update={"share_frac": shares[name]}) for name, of in texts.classes.items()}
            mixed = texts.model_copy(update={"classes": classes})
            found[f"{model}, {share:.0%} structured"] = line_of(table, mixed, assumed)
        for ms in (2.0, 4.0):
            dearer = table.model_copy(update={"draft_ms": {**table.draft_ms, 2: ((1, ms),)}})
            found[f"{model}, drafts of {ms:g} ms more"] = line_of(dearer, texts, assumed)
    return {"sha256": {PREDICTED.name: sha256_of(PREDICTED)}, "fitted": found}


def line_of(table: StepTimeTable, figures: TextFigures, assumed: dict[str, Any]) -> Line:
    """Return [requests, tok/s, rows per request and step, tokens per request and step] of each number of requests."""
    texts = PublishedTexts(figures, nodes=assumed["drafted_tokens"])
    return [point_of(table, texts, assumed, requests) for requests in assumed["requests_per_gpu"]]


def point_of(table: StepTimeTable, texts: PublishedTexts, assumed: dict[str, Any], users: int) -> list[float]:
    limits = EngineLimits(
        max_running=users, kv_tokens=10**9, chunk_tokens=8192, nodes=assumed["drafted_tokens"], rung=2, live_shares=True
    )
    times = StepTimeModel(table)
    blind = policy_of("blind", PaceRules(), strict_weight=1.0)
    engine = SimEngine(blind, times=times, true_times=times, limits=limits)
    steps = Steps()

    def request(user: int, turn: int) -> SimRequest:
        rng = np.random.default_rng([assumed["seed"], user, turn])
        return SimRequest((user, turn), 0, 0.0, 0, texts.answer(rng))

    serve(engine, request, users=users, turns=assumed["turns"], on_step=steps.add)
    return [users, *steps.means()]


class Steps:
    """Sums over decode steps; requests of the first answers, which all begin at once, are left out."""

    def __init__(self) -> None:
        self.kept: list[tuple[float, int, int, int]] = []

    def add(self, now_ms: float, step: SimStep) -> None:
        if len(step.rows):
            self.kept.append((step.took_ms, len(step.rows), int(step.rows.sum()), int(step.tokens.sum())))

    def means(self) -> tuple[float, float, float]:
        """Return tokens a second, and rows and tokens per request and step, of the later two thirds."""
        took_ms, requests, rows, tokens = np.array(self.kept[len(self.kept) // 3 :]).sum(axis=0)
        return round(1000.0 * tokens / took_ms, 1), round(rows / requests, 4), round(tokens / requests, 4)


def mtp1_line(table: StepTimeTable, tau1: float) -> Line:
    """Return [requests, tok/s] of MTP-1 by a table."""
    times = StepTimeModel(table)

    def speed(requests: int) -> float:
        step_ms = times.step_ms(rung=1, requests=requests, rows=np.array([2 * requests]))
        return float(1000.0 * tau1 * requests / step_ms[0])

    return [[requests, round(speed(requests), 1)] for requests in (1, 2, 3, 5, 7, *range(10, 350, 5))]


if __name__ == "__main__":
    sys.exit(main())
