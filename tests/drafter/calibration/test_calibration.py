"""Calibration on synthetic drafters whose true miscalibration is known, and the metrics against slow definitions."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.calibration.children import fit_children
from sparktier.drafter.calibration.sts import StsCalibration, fit_sts, read_sts, write_sts
from sparktier.drafter.data.arrays import Floats
from sparktier.drafter.evaluation.metrics import auc, ece_frac
from sparktier.drafter.evaluation.rounds import survival
from sparktier.drafter.model.edge_calibration import (
    Q_MIN,
    ChildCalibrator,
    read_children,
    temperature_class,
    write_children,
)

TRUE_TEMPERATURES = (0.6, 1.7, 2.5, 1.0, 3.0)


def synthetic_blocks(samples: int, seed: int) -> tuple[Floats, Floats]:
    """Draw confidence logits that are right after division by TRUE_TEMPERATURES, and the prefixes they lead to."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(1.5, 1.5, (samples, len(TRUE_TEMPERATURES)))
    accepted = np.cumprod(rng.random(honest.shape) < expit(honest), axis=1).astype(np.float64)
    return honest * np.array(TRUE_TEMPERATURES), accepted


def test_sts_brings_a_miscalibrated_head_below_one_percent() -> None:
    calibration = fit_sts(*synthetic_blocks(40_000, seed=1), dataset="synthetic")
    assert max(calibration.ece_before) > 0.05, "the test must start from something wrong"
    fresh_logits, fresh_accepted = synthetic_blocks(40_000, seed=2)
    predicted = survival(fresh_logits, calibration.temperatures)
    errors = [ece_frac(predicted[:, row], fresh_accepted[:, row]) for row in range(predicted.shape[1])]
    assert max(errors) < 0.01, errors
    assert calibration.temperatures == pytest.approx(TRUE_TEMPERATURES, rel=0.12)


def test_sts_keeps_an_honest_head_and_scales_the_product_not_the_row() -> None:
    rng = np.random.default_rng(3)
    # Row 2 is right only given that row 1 is scaled: fitting rows alone, or after unscaled products, would miss it.
    honest = np.stack((rng.normal(0.5, 1.5, 30_000), rng.normal(2.0, 1.0, 30_000)), axis=1)
    accepted = np.cumprod(rng.random(honest.shape) < expit(honest), axis=1).astype(np.float64)
    calibration = fit_sts(honest * np.array([4.0, 1.0]), accepted, "synthetic")
    assert calibration.temperatures == pytest.approx((4.0, 1.0), rel=0.15)


def test_sglang_reads_our_sts_file_and_we_read_sglangs(tmp_path: Path) -> None:
    from sglang.srt.speculative.dspark_components.dspark_sts import DSparkStsCalibration, load_sts_calibration_from_path

    calibration = StsCalibration((0.5, 2.0), "gsm8k", 7, (0.1, 0.2), (0.01, 0.02))
    write_sts(tmp_path / "ours.json", calibration)
    theirs = load_sts_calibration_from_path(str(tmp_path / "ours.json"))
    assert (theirs.temperatures, theirs.num_samples, theirs.ece_after) == ([0.5, 2.0], 7, [0.01, 0.02])
    (tmp_path / "theirs.json").write_text(DSparkStsCalibration(temperatures=[1.5, 3.0]).to_json())
    assert read_sts(tmp_path / "theirs.json", gamma=2).temperatures == (1.5, 3.0)


@pytest.mark.parametrize("temperatures", [[1.0], [1.0, 0.0], [1.0, "hot"], None])
def test_a_wrong_sts_file_is_refused(temperatures: object, tmp_path: Path) -> None:
    (tmp_path / "sts.json").write_text(json.dumps({"temperatures": temperatures}))
    with pytest.raises(ArtifactError, match="temperatures"):
        read_sts(tmp_path / "sts.json", gamma=2)


def test_child_fit_finds_the_parameters_it_was_drawn_from() -> None:
    rng = np.random.default_rng(4)
    q = expit(rng.normal(-1.0, 2.5, 60_000))
    accepted = (rng.random(60_000) < expit(0.67 * logit(q) - 0.46)).astype(np.float64)
    fit = fit_children(q, accepted, "target_match", temperature=0.0)
    assert (fit.slope, fit.intercept) == pytest.approx((0.67, -0.46), abs=0.03)
    assert fit.ece_before_frac > 0.05
    assert fit.ece_after_frac < 0.01
    grid = np.array([0.0, 1e-4, 0.5, 0.9, 1.0])
    edges = fit.edge_acceptance(torch.tensor(grid, dtype=torch.float32), 3).numpy()
    assert edges[2] == pytest.approx(expit(-0.46), abs=0.01)
    bounded = np.clip(grid, Q_MIN, 1 - Q_MIN)
    assert edges == pytest.approx(expit(fit.slope * logit(bounded) + fit.intercept), abs=1e-4)


def test_children_that_contradict_the_drafter_are_refused() -> None:
    q = np.linspace(0.01, 0.99, 500)
    with pytest.raises(ArtifactError, match="must rise"):
        fit_children(q, (q < 0.5).astype(np.float64), "target_match", 1.0)


@pytest.mark.parametrize("accepted", [[], [0.0] * 5, [1.0] * 5])
def test_outcomes_that_are_all_alike_are_refused(accepted: list[float]) -> None:
    with pytest.raises(
        ArtifactError, match=rf"\(found {sum(accepted):.0f} of {len(accepted)} accepted\)\. Give more answers"
    ):
        fit_children(np.linspace(0.1, 0.9, len(accepted)), np.array(accepted), "target_match", 0.0)


def test_perfectly_separated_children_still_fit() -> None:
    q = np.linspace(0.01, 0.99, 500)
    fit = fit_children(q, (q > 0.5).astype(np.float64), "target_match", 1.0)
    assert np.isfinite(fit.slope)
    assert fit.ece_after_frac < 0.02


def fit_of(rule: str, kind: str) -> ChildCalibrator:
    return ChildCalibrator.model_validate(
        {"accept_rule": rule, "temperature_class": kind, "slope": 0.7, "intercept": -0.4, "samples": 9}
        | {"ece_before_frac": 0.1, "ece_after_frac": 0.01, "auc": 0.9}
    )


def test_child_file_returns_the_fit_for_rule_and_temperature(tmp_path: Path) -> None:
    fits = [fit_of("target_match", "greedy"), fit_of("target_match", "warm")]
    write_children(tmp_path / "children.json", "abc", "gsm8k", fits)
    calibration = read_children(tmp_path / "children.json", "abc")
    assert calibration.of("target_match", 0.0) == fits[0]
    assert calibration.of("target_match", 1.0) == fits[1]
    with pytest.raises(ArtifactError, match="drawn at warm"):
        calibration.of("drawn", 1.0)


def test_child_file_of_another_drafter_or_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "children.json"
    write_children(path, "abc", "gsm8k", [fit_of("drawn", "cool")])
    with pytest.raises(ArtifactError, match="was fitted for"):
        read_children(path, "def")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    with pytest.raises(ArtifactError, match="schema_version"):
        read_children(path, "abc")


def test_temperature_classes() -> None:
    assert [temperature_class(t) for t in (0.0, 0.3, 0.69, 0.7, 1.0)] == ["greedy", "cool", "cool", "warm", "warm"]


samples = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60)


@settings(max_examples=100, deadline=None)
@given(samples)
def test_auc_is_the_chance_of_ranking_right(drawn: list[tuple[int, bool]]) -> None:
    predicted, outcomes = (np.array(column, dtype=np.float64) for column in zip(*drawn, strict=True))
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, b in itertools.product(predicted[outcomes == 1], predicted[outcomes == 0])
    ]
    if pairs:
        assert auc(predicted, outcomes) == pytest.approx(float(np.mean(pairs)))
    else:
        assert np.isnan(auc(predicted, outcomes))


@settings(max_examples=100, deadline=None)
@given(samples, st.integers(1, 8))
def test_ece_equals_its_definition(drawn: list[tuple[int, bool]], bins: int) -> None:
    ordered = sorted(drawn, key=lambda pair: pair[0])
    size, rest = divmod(len(ordered), bins)
    total, start = 0.0, 0
    for index in range(bins):
        stop = start + size + (index < rest)
        part = ordered[start:stop]
        total += abs(sum(p for p, _ in part) - sum(y for _, y in part))
        start = stop
    predicted, outcomes = (np.array(column, dtype=np.float64) for column in zip(*drawn, strict=True))
    assert ece_frac(predicted, outcomes, bins) == pytest.approx(total / len(drawn))
