"""Evaluation from a trained toy drafter to report rows, figures and fitted calibrations."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from sparktier.configs.files import sha256_of
from sparktier.configs.report import report_meta, write_report
from sparktier.drafter.calibration.calibrate import calibrate
from sparktier.drafter.calibration.sts import read_sts
from sparktier.drafter.data.feature_store import FeatureStore
from sparktier.drafter.data.features import FeatureSpec
from sparktier.drafter.data.target import read_target
from sparktier.drafter.evaluation.evaluate import evaluate
from sparktier.drafter.evaluation.metrics import ece_frac
from sparktier.drafter.evaluation.plots import write_figures
from sparktier.drafter.evaluation.replay import Replay
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.drafter.model.edge_calibration import read_children
from sparktier.drafter.training.distributed import DistributedContext
from sparktier.drafter.training.train import train
from support.toy_training import toy_settings, write_world

ROW = {"drafter", "dataset", "temperature", "seed", "accepted_length", "ece_frac", "auc", "distinct_4gram_frac"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    torch.set_num_threads(1)
    store, context = FeatureStore(folder / "store"), DistributedContext(0, 1, torch.device("cpu"))
    train(toy_settings(folder, 80), store, context, Console(quiet=True), {})
    return folder


@pytest.fixture(scope="module")
def model(world: Path) -> DraftModel:
    return load_draft(world / "run/checkpoints/step-00000080/draft", read_target(world / "target"))


class AsIfSampled:
    """The same answers, said to be sampled at temperature 1."""

    def __init__(self, store: FeatureStore) -> None:
        self.spec = FeatureSpec.model_validate(store.spec.model_dump() | {"temperature": 1.0})
        self.lengths_tokens, self.read = store.lengths_tokens, store.read


def test_a_trained_drafter_evaluates_well_and_a_broken_one_badly(world: Path, model: DraftModel) -> None:
    store = FeatureStore(world / "store")
    (good,) = evaluate(model, store, "trained", seeds=[1, 2, 3])
    row = good.row()
    assert row.keys() >= ROW
    assert isinstance(row["accepted_length"], float)
    assert row["accepted_length"] > 3.0
    broken = load_draft(world / "run/checkpoints/step-00000080/draft", read_target(world / "target"))
    broken.fc.weight.data.normal_()
    assert broken.markov_head is not None
    broken.markov_head.markov_w2.weight.data.normal_()
    (bad,) = evaluate(broken, store, "broken", seeds=[1])
    assert bad.rounds().accepted_length < 1.5
    tokens = sum(int(answer.remaining[0]) for answer in good.replays)
    assert good.rounds().committed.sum() == bad.rounds().committed.sum() == tokens


def test_sampled_evaluation_has_a_row_per_seed_and_its_own_coins(world: Path, model: DraftModel) -> None:
    evaluations = evaluate(model, AsIfSampled(FeatureStore(world / "store")), "trained", seeds=[1, 2, 3])
    assert [evaluation.seed for evaluation in evaluations] == [1, 2, 3]
    accepted = [tuple(evaluation.rounds().accepted.tolist()) for evaluation in evaluations]
    assert len(set(accepted)) == 3
    again = evaluate(model, AsIfSampled(FeatureStore(world / "store")), "trained", seeds=[2])
    assert tuple(again[0].rounds().accepted.tolist()) == accepted[1]


def test_a_drafter_without_confidence_head_reports_none(world: Path, model: DraftModel) -> None:
    silent = load_draft(world / "run/checkpoints/step-00000080/draft", read_target(world / "target"))
    silent.confidence_head = None
    (evaluation,) = evaluate(silent, FeatureStore(world / "store"), "silent", seeds=[1])
    assert (evaluation.row()["ece_frac"], evaluation.row()["auc"]) == (None, None)


def test_answers_shorter_than_a_block_still_report(world: Path, model: DraftModel) -> None:
    (evaluation,) = evaluate(model, FeatureStore(world / "store"), "trained", seeds=[1])
    short = replace(evaluation, replays=tuple(cut_to_three(answer) for answer in evaluation.replays))
    row = short.row()
    assert (row["ece_frac"], row["auc"]) == (None, None)
    assert row["accepted_length"] == pytest.approx(short.rounds().committed.mean())


def cut_to_three(answer: Replay) -> Replay:
    """Return the last three anchors of an answer: none has room for a whole block of four."""
    parts = (answer.anchors, answer.drafted, answer.accepted, answer.remaining, answer.confidence)
    return Replay(*(part[-3:] for part in parts))


def test_sweeps_end_at_the_unlimited_length(world: Path, model: DraftModel) -> None:
    (evaluation,) = evaluate(model, FeatureStore(world / "store"), "trained", seeds=[1])
    whole = evaluation.rounds().accepted_length
    lengths = [row["accepted_length"] for row in evaluation.length_sweep()]
    assert lengths == sorted(lengths, key=float)
    assert lengths[-1] == whole
    assert evaluation.confidence_sweep()[0]["accepted_length"] == whole


def test_a_head_that_knows_lets_no_wrong_draft_through(world: Path, model: DraftModel) -> None:
    (evaluation,) = evaluate(model, FeatureStore(world / "store"), "trained", seeds=[1])
    knowing = replace(evaluation, replays=tuple(told_the_outcome(answer) for answer in evaluation.replays))
    at = {row["threshold"]: row for row in knowing.confidence_sweep()}
    assert float(str(at[0.0]["accept_rate_frac"])) < 0.95
    assert at[0.5]["accept_rate_frac"] == 1.0
    assert at[0.5]["accepted_length"] == at[0.0]["accepted_length"]


def told_the_outcome(answer: Replay) -> Replay:
    """Return the answer with confidences that are sure of what was accepted."""
    is_accepted = torch.arange(4) < answer.accepted.unsqueeze(1)
    return replace(answer, confidence=torch.where(is_accepted, 9.0, -9.0))


def test_report_and_figures_are_written(world: Path, model: DraftModel, tmp_path: Path) -> None:
    evaluations = evaluate(model, FeatureStore(world / "store"), "trained", seeds=[1])
    write_report(tmp_path / "report.json", report_meta("evaluate", seed=1), [e.row() for e in evaluations])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["meta"].keys() >= {"command", "version", "commit", "machine", "load_average", "seed", "started_at"}
    assert report["rows"][0].keys() >= ROW
    figures = write_figures(tmp_path / "figures", evaluations)
    assert len(figures) == 4
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)


def test_calibration_files_fit_the_drafter_they_were_made_for(world: Path, model: DraftModel, tmp_path: Path) -> None:
    draft, store = world / "run/checkpoints/step-00000080/draft", FeatureStore(world / "store")
    sources = [store, AsIfSampled(store)]
    made, target = tmp_path / "calibrated", read_target(world / "target")
    confidence, fits = calibrate(draft, target, sources, seed=1, folder=made)
    assert confidence is not None
    fitted, sts = confidence.fit.head, confidence.sts
    assert read_sts(made / "sts.json", gamma=4) == sts
    assert np.mean(sts.ece_after) <= np.mean(sts.ece_before)
    children = read_children(made / "children.json", sha256_of(made / "model.safetensors"))
    assert [fit.temperature_class for fit in children.fits] == ["greedy", "warm"]
    assert list(children.fits) == fits
    assert fits[0].auc > 0.9
    moved = load_draft(made, target)
    head = moved.confidence_head.proj
    assert head.weight[0].tolist() == pytest.approx(fitted.weight.tolist(), abs=1e-6)
    assert head.bias.item() == pytest.approx(fitted.bias, abs=1e-6)
    assert not torch.equal(head.weight, model.confidence_head.proj.weight)
    (greedy,) = evaluate(moved, store, "trained", [1], sts.temperatures)
    predicted, outcomes = greedy.predictions()
    assert sts.num_samples == len(predicted), "the head is of the lowest temperature"
    after = [ece_frac(predicted[:, row], outcomes[:, row]) for row in range(4)]
    assert after == pytest.approx(sts.ece_after, abs=1e-6)


def test_stores_of_one_temperature_class_are_fitted_as_one(world: Path, tmp_path: Path) -> None:
    draft, store = world / "run/checkpoints/step-00000080/draft", FeatureStore(world / "store")
    target = read_target(world / "target")
    once = calibrate(draft, target, [store], seed=1, folder=tmp_path / "once").children
    twice = calibrate(draft, target, [store, store], seed=1, folder=tmp_path / "twice").children
    assert [fit.samples for fit in twice] == [2 * once[0].samples]
    assert twice[0].slope == pytest.approx(once[0].slope, rel=1e-4)
