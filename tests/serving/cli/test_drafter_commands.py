"""`sparktier train`, `evaluate` and `calibrate`: a tiny target and drafter, the files they write, and bad input."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from sparktier.drafter.data.feature_store import FeatureStore, FeatureWriter, Manifest
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.prompts import Prompt, write_prompts
from sparktier.drafter.data.target import read_target
from sparktier.drafter.evaluation.evaluate import evaluate
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.serving.cli.main import main
from sparktier.serving.clients.replica_keys import KEYS_FILE_ENV, new_keys_file
from support.oracles.oracle_draft import make_oracle_draft
from support.tiny_moe import make_tiny_moe
from support.toy_training import SHAPE, curve, write_world

LAYERS = (0, 2)
PROMPTS = [Prompt((f"Question {number}, please.",)) for number in range(60)]
CALIBRATE = [prompt for prompt in PROMPTS if prompt.split == "calibrate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target, a drafter that guesses it now and then, a configuration, prompts, and a store of features."""
    folder = tmp_path_factory.mktemp("drafter")
    make_tiny_moe(folder / "model", context_gain=0.3)
    make_oracle_draft(folder / "draft", folder / "model", block_tokens=3, gains=(8.0, 6.0))
    settings = {
        "model": {"path": str(folder / "model")},
        "speculation": {"method": "chain", "draft_path": str(folder / "draft")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    write_prompts(folder / "asked.jsonl", PROMPTS)
    write_prompts(folder / "training.jsonl", [prompt for prompt in PROMPTS if prompt.split == "train"])
    _write_store(folder)
    return folder


def _write_store(folder: Path) -> None:
    local = LocalTarget(folder / "model", LAYERS)
    prefixes = [local.encode(prompt) for prompt in PROMPTS[:5]]
    records = local.write(prefixes, 20, 1.0, torch.Generator().manual_seed(0)).records
    lengths = tuple(len(record.token_ids) for record in records)
    manifest = Manifest(spec=local.spec("stored", 1.0, 0), lengths_tokens=lengths, sequences_per_shard=4)
    writer = FeatureWriter(folder / "store", manifest, 10**9)
    for record in records:
        writer.append(record)


def exit_code(arguments: list[object]) -> int:
    try:
        return main([str(part) for part in arguments])
    except SystemExit as ended:
        return int(str(ended.code))


def test_evaluate_reports_a_row_for_each_set_temperature_and_seed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    choices = ["--limit", 3, "--tokens", 12, "--temperature", 0, "--temperature", 1, "--seed", 1, "--seed", 2]
    asked = ["--prompts", folder / "asked.jsonl", "--prompts", folder / "training.jsonl"]
    assert exit_code(["evaluate", folder / "config.yaml", *asked, *choices, "--json", report]) == 0
    written = json.loads(report.read_text())
    assert written["meta"]["command"] == "evaluate"
    assert {"version", "commit", "machine", "load_average", "seed", "started_at"} <= written["meta"].keys()
    found = {(row["dataset"], row["temperature"], row["seed"]) for row in written["rows"]}
    runs = [(0.0, 1), (1.0, 1), (1.0, 2)]
    assert found == {(name, temperature, seed) for name in ("asked", "training") for temperature, seed in runs}
    for row in written["rows"]:
        assert row["drafter"] == "draft"
        assert row["answers"] == 3
        assert 1.0 <= row["accepted_length"] <= 4.0
        assert 0.0 <= row["distinct_4gram_frac"] <= 1.0
    figures = {path.name for path in (tmp_path / "report").iterdir()}
    assert figures == {"acceptance_by_row.png", "length_sweep.png", "confidence_sweep.png", "reliability.png"}
    output = capsys.readouterr()
    assert "accepted" in output.out
    assert "asked T=0: answers: 3 done" in output.err


def test_evaluate_replays_stored_features(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--features", folder / "store", "--seed", 7, "--json", report]
    assert exit_code(["evaluate", folder / "config.yaml", *options]) == 0
    target = read_target(folder / "model")
    model = load_draft(folder / "draft", target)
    expected = evaluate(model, FeatureStore(folder / "store"), "draft", [7])[0].row()
    assert json.loads(report.read_text())["rows"] == [expected]


def test_calibrate_writes_what_evaluate_then_applies(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert CALIBRATE, "the prompts must have some of this split"
    report = tmp_path / "fits.json"
    options = ["--prompts", folder / "asked.jsonl", "--temperature", 0, "--temperature", 1, "--tokens", 16]
    command = ["calibrate", folder / "config.yaml", *options, "--out", tmp_path / "fits", "--json", report]
    assert exit_code(command) == 0
    rows = json.loads(report.read_text())["rows"]
    assert [row["fit"] for row in rows] == ["confidence"] + ["sts"] * 3 + ["children"] * 2
    sts = json.loads((tmp_path / "fits" / "sts.json").read_text())
    assert [row["temperature"] for row in rows[1:4]] == sts["temperatures"]
    children = json.loads((tmp_path / "fits" / "children.json").read_text())
    assert [fit["temperature_class"] for fit in children["fits"]] == ["greedy", "warm"]
    load_draft(tmp_path / "fits", read_target(folder / "model"))
    assert exit_code(command) == 2, "what is there is never replaced"
    assert "needs a new or empty folder" in capsys.readouterr().err


def test_calibrate_takes_no_prompt_that_may_train(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["calibrate", folder / "config.yaml", "--prompts", folder / "training.jsonl", "--out", tmp_path]
    assert exit_code(command) == 2
    assert "at least one of the calibrate split (found none)" in capsys.readouterr().err


def test_train_trains_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_world(tmp_path)
    run = {
        "target": str(tmp_path / "target"), "run_dir": str(tmp_path / "run"), "draft": SHAPE, "steps": 6,
        "row_tokens": 64, "rows_per_step": 2, "anchors_per_row": 8, "held_out_sequences": 4, "precision": "fp32",
        "checkpoint_every_steps": 2, "loss_columns": 24,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    command = ["train", tmp_path / "run.yaml", "--features", tmp_path / "store"]
    assert exit_code(command) == 0
    draft = tmp_path / "run" / "checkpoints" / "step-00000006" / "draft"
    assert str(draft) in capsys.readouterr().out
    load_draft(draft, read_target(tmp_path / "target"))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["command"] == "train"
    whole = curve(tmp_path / "run")
    assert [row["step"] for row in whole] == [1, 2, 3, 4, 5, 6]
    for step in (4, 6):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        folder.rename(tmp_path / f"gone-{step}")
    (tmp_path / "gone-4").rename(tmp_path / "run" / "checkpoints" / "step-00000004")
    assert exit_code(command) == 0
    assert curve(tmp_path / "run") == whole


BAD = {
    "no answers": (["evaluate", "CONFIG"], "--prompts: answers come from --prompts or --features"),
    "no such prompts": (["evaluate", "CONFIG", "--prompts", "nowhere.jsonl"], "readable file of prompts"),
    "broken prompts": (["evaluate", "CONFIG", "--prompts", "CONFIG"], "config.yaml:1: a line must be JSON"),
    "no such store": (["evaluate", "CONFIG", "--features", "nowhere"], "a feature store's manifest was expected"),
    "no such drafter": (["evaluate", "CONFIG", "--prompts", "ASKED", "--draft", "nowhere"], "a draft's config.json"),
    "no drafter": (
        ["evaluate", "PLAIN", "--prompts", "ASKED"],
        "speculation.draft_path: a drafter must be named",
    ),
    "a target elsewhere": (
        ["calibrate", "CONFIG", "--prompts", "ASKED", "--set", "model.path=some/where"],
        "model.path: must be a directory on this machine",
    ),
    "temperature": (["evaluate", "CONFIG", "--temperature", "warm"], "must be a number of at least 0, not 'warm'"),
    "nan": (["calibrate", "CONFIG", "--temperature", "nan"], "must be a number of at least 0, not 'nan'"),
    "limit": (["evaluate", "CONFIG", "--limit", "0"], "must be a whole number from 1"),
    "no settings": (["train", "nowhere.yaml", "--features", "STORE"], "nowhere.yaml"),
    "wrong settings": (["train", "CONFIG", "--features", "STORE"], "config.yaml: target"),
    "two sources": (
        ["train", "RUN", "--features", "STORE", "--engine", "http://x"],
        "from --engine with --answers, or from `data` in the file (found --features, --engine)",
    ),
    "an engine without answers": (["train", "RUN", "--engine", "http://127.0.0.1:1"], "(found --engine)"),
    "no source": (["train", "RUN"], "(found neither)"),
    "an engine without keys": (
        ["train", "RUN", "--engine", "http://127.0.0.1:1", "--answers", "ANSWERS"], "SPARKTIER_KEYS_FILE: must name"
    ),
    "nobody there": (
        ["train", "RUN", "--engine", "http://127.0.0.1:1", "--answers", "ANSWERS"], "a replica must hand out features"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "nobody there":
        monkeypatch.setenv(KEYS_FILE_ENV, str(new_keys_file(tmp_path)))
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"target": "t", "run_dir": "r", "steps": 1, "init_from": "nowhere"})
    )
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump({"model": {"path": str(folder / "model")}}))
    (tmp_path / "answers.jsonl").write_text('{"digest": "a", "prompt_ids": [1], "answer_ids": [2, 3, 4]}\n')
    names = {
        "CONFIG": folder / "config.yaml",
        "PLAIN": tmp_path / "plain.yaml",
        "ASKED": folder / "asked.jsonl",
        "STORE": folder / "store",
        "RUN": tmp_path / "run.yaml",
        "ANSWERS": tmp_path / "answers.jsonl",
    }
    command, complaint = BAD[name]
    status = 1 if name == "nobody there" else 2
    assert exit_code([names.get(part, part) for part in command]) == status
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert all(line.startswith("sparktier: ") for line in lines)
    assert len(lines) == 1 or name == "wrong settings"
    assert complaint in captured.err
