"""The fitted tables give the paper's lines of MTP-1, and no stage of the prediction was changed afterwards."""

from pathlib import Path

import numpy as np
import pytest

from sparktier.cluster.simulator.published_text import PUBLISHED
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.files import read_json, sha256_of
from sparktier.configs.step_times import REFERENCE_TABLES, reference_table

PAPER = Path(__file__).resolve().parents[3] / "docs" / "measurements" / "paper"
FIT = read_json(PAPER / "fit.json", "the fit")
POINTS = read_json(PAPER / "mtp1.json", "its points")["mtp1_requests_tok_s"]


@pytest.mark.parametrize(("model", "most_frac"), [("flash", 0.02), ("pro", 0.04)])
def test_the_fitted_table_gives_the_line_of_mtp1(model: str, most_frac: float) -> None:
    requests, tok_s = np.array([point for point in POINTS[model] if 10 <= point[0] <= 345]).T
    times = StepTimeModel(reference_table(f"v4-{model}-fitted"))
    step_ms = [times.step_ms(rung=1, requests=round(r), rows=np.array([round(2 * r)]))[0] for r in requests]
    ours = 1000.0 * FIT["tau1"] * np.round(2 * requests) / 2.0 / np.array(step_ms)
    assert np.abs(ours / tok_s - 1.0).max() < most_frac


@pytest.mark.parametrize("stage", ["fit", "assumptions", "predictions"])
def test_what_a_stage_stands_on_is_what_was_frozen(stage: str) -> None:
    folders = (PAPER, REFERENCE_TABLES, PUBLISHED.parent)
    for name, digest in read_json(PAPER / f"{stage}.json", stage)["sha256"].items():
        path = next(folder / name for folder in folders if (folder / name).exists())
        assert sha256_of(path) == digest, name
