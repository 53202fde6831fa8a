"""The training loop: it learns, survives being killed, is the same on one rank and two, cached and streamed."""

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from sparktier.configs.errors import ArtifactError, ConfigError
from sparktier.drafter.data.feature_store import FeatureStore
from sparktier.drafter.data.feature_stream import FeatureStream
from sparktier.drafter.data.features import FeatureSource
from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.data.target import read_target
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.drafter.training import train as train_module
from sparktier.drafter.training.distributed import DistributedContext
from sparktier.drafter.training.optimiser import Optimiser
from sparktier.drafter.training.train import train
from sparktier.drafter.training.train_settings import TrainSettings, load_train_settings
from sparktier.drafter.training.trainer import Trainer
from sparktier.drafter.training.training_run import TrainingRun
from support.toy_training import SHAPE, curve, toy_settings, write_world

HERE = DistributedContext(0, 1, torch.device("cpu"))
TESTS = Path(__file__).parents[2]
QUIET = Console(stderr=True, quiet=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_world(tmp_path)
    return tmp_path


def run(settings: TrainSettings, source: FeatureSource | None = None) -> Path:
    store = source or FeatureStore(settings.target.parent / "store")
    return train(settings, store, HERE, QUIET, {"commit": "abc"})


def loud(world: Path) -> DraftModel:
    settings, target = toy_settings(world, 4), read_target(world / "target")
    return train_module.build_model(settings, target, FeatureStore(world / "store").spec)


def program(*arguments: str, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, "-m", "support.toy_training", *arguments]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}


def test_it_learns_the_toy_target(world: Path) -> None:
    draft = run(toy_settings(world, 100))
    rows = curve(world / "run")
    evaluated = [row for row in rows if "held_out_length" in row]
    assert evaluated[0]["held_out_greedy_length"] < 1.6
    # Blocks near an answer's end are shorter than gamma + 1 = 5.
    assert evaluated[-1]["held_out_greedy_length"] > 3.6
    assert evaluated[-1]["held_out_length"] > 2.8
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert load_draft(draft, read_target(world / "target")).config.target_layer_ids == (0, 2)
    assert json.loads((world / "run" / "run.json").read_text())["commit"] == "abc"


def test_a_killed_run_resumes_to_the_same_curve(world: Path) -> None:
    run(toy_settings(world, 30, run_dir=world / "whole"))
    log = world / "run" / "metrics.jsonl"
    child = subprocess.Popen(program(str(world), "30"), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 10):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    killed_at = len(curve(world / "run"))
    assert killed_at < 30, "the run ended before it could be killed"
    run(toy_settings(world, 30))
    assert curve(world / "run") == curve(world / "whole")
    target = read_target(world / "target")
    weights = [load_draft(world / name / "checkpoints/step-00000030/draft", target) for name in ("run", "whole")]
    for name, tensor in weights[0].state_dict().items():
        assert torch.equal(tensor, weights[1].state_dict()[name]), name


def test_two_ranks_follow_the_curve_of_one(world: Path) -> None:
    run(toy_settings(world, 8, run_dir=world / "one", rows_per_step=4))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    arguments = (str(world), "8", f'run_dir="{world}/two"', "rows_per_step=4")
    subprocess.run(program(*arguments, launcher=launcher), env=ENVIRONMENT, check=True, capture_output=True)
    one, two = curve(world / "one"), curve(world / "two")
    assert len(one) == len(two) == 8
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def streamed(store: FeatureStore) -> FeatureStream:
    def produce(order: Iterator[int]) -> Iterator[FeatureRecord]:
        for index in order:
            yield from store.read([index])

    return FeatureStream(store.spec, store.lengths_tokens, produce, in_flight=3)


def test_streaming_follows_the_cached_curve(world: Path) -> None:
    store = FeatureStore(world / "store")
    run(toy_settings(world, 10, run_dir=world / "cached"))
    run(toy_settings(world, 10, run_dir=world / "streamed"), streamed(store))
    assert curve(world / "cached") == curve(world / "streamed")


def test_bf16_follows_fp32_closely(world: Path) -> None:
    run(toy_settings(world, 10, run_dir=world / "fp32"))
    run(toy_settings(world, 10, run_dir=world / "bf16", precision="bf16"))
    full, half = curve(world / "fp32"), curve(world / "bf16")
    assert [row["loss"] for row in half] == pytest.approx([row["loss"] for row in full], rel=0.05)
    assert [row["loss"] for row in half] != [row["loss"] for row in full]


@pytest.mark.parametrize(("units", "precision"), [(True, "bf16"), (False, "fp32")])
def test_precision_is_settled_by_what_the_cpu_is_quick_in(
    world: Path, monkeypatch: pytest.MonkeyPatch, units: bool, precision: str
) -> None:
    monkeypatch.setattr(train_module, "has_bfloat16_units", lambda: units)
    run(toy_settings(world, 2, run_dir=world / "auto", precision="auto"))
    assert json.loads((world / "auto" / "run.json").read_text())["settings"]["precision"] == precision
    run(toy_settings(world, 2, run_dir=world / "named", precision=precision))
    assert curve(world / "auto") == curve(world / "named")


def test_fine_tuning_starts_from_the_draft_it_is_given(world: Path) -> None:
    draft = run(toy_settings(world, 100))
    fresh = toy_settings(world, 1, run_dir=world / "tuned", draft=None, init_from=draft, learning_rate=1e-6)
    run(fresh)
    assert curve(world / "tuned")[-1]["held_out_greedy_length"] > 3.0


@pytest.mark.parametrize("markov", [{"markov_rank": 0, "confidence_head": False}, {"markov_head_type": "rnn"}])
def test_every_kind_of_draft_trains(markov: dict[str, object], world: Path) -> None:
    settings = toy_settings(world, 6)
    assert settings.draft is not None
    shape = settings.draft.model_dump() | markov
    run(toy_settings(world, 6, draft=shape))
    rows = curve(world / "run")
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_corrupt_checkpoint_is_refused_and_the_one_before_it_serves(world: Path) -> None:
    run(toy_settings(world, 8))
    newest = world / "run" / "checkpoints" / "step-00000008"
    state = newest / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"Delete .*step-00000008"):
        run(toy_settings(world, 8))
    whole = curve(world / "run")
    for path in sorted(newest.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    newest.rmdir()
    run(toy_settings(world, 8))
    assert curve(world / "run") == whole


def test_old_checkpoints_are_dropped(world: Path) -> None:
    run(toy_settings(world, 12, keep_checkpoints=2))
    names = sorted(path.name for path in (world / "run" / "checkpoints").iterdir())
    assert names == ["step-00000008", "step-00000012"]


def test_only_what_a_run_wrote_is_dropped_and_only_its_names_are_resumed_from(world: Path) -> None:
    run(toy_settings(world, 8, run_dir=world / "whole"))
    settings = toy_settings(world, 8, keep_checkpoints=1, checkpoint_every_steps=2)
    checkpoints = world / "run" / "checkpoints"
    run(toy_settings(world, 8, keep_checkpoints=1, checkpoint_every_steps=2))
    newest = checkpoints / "step-00000008"
    # Copies under names of one's own and of another step, notes, and a checkpoint that was calibrated in place.
    for name in ("step-00000008-good", "step-best", "step-00000009", "step-8", ".step-00000008.bak"):
        shutil.copytree(newest, checkpoints / name)
    shutil.copytree(newest, checkpoints / "step-00000004")
    (checkpoints / "step-00000004" / "state.json").write_text(json.dumps({"step": 4, "sha256": ""}))
    (checkpoints / "step-00000004" / "draft" / "sts.json").write_text("{}")
    (checkpoints / "step-notes.txt").write_text("mine")
    kept = {path.name for path in checkpoints.iterdir()}
    run(settings)
    shutil.rmtree(newest)
    shutil.rmtree(checkpoints / "step-00000004")
    run(settings)
    assert {path.name for path in checkpoints.iterdir()} == kept - {"step-00000004"}
    assert [row["loss"] for row in curve(world / "run")] == [row["loss"] for row in curve(world / "whole")]


@pytest.mark.parametrize(
    ("last_good", "value", "found"),
    [(6, math.nan, "loss nan"), (7, math.inf, "not finite"), (11, math.nan, "not finite")],
)
def test_a_run_that_diverges_ends_with_its_last_good_checkpoint(
    last_good: int, value: float, found: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 8 and 12 are saved; what breaks in them must not be."""
    stepped, done = Optimiser.step, itertools.count()

    def step(optimiser: Optimiser, learning_rate: float) -> None:
        stepped(optimiser, learning_rate)
        if next(done) == last_good:
            optimiser._parts[0][1]["layers.0.mlp.down_proj.weight"].data[0, 0] = value

    monkeypatch.setattr(Optimiser, "step", step)
    with pytest.raises(ConfigError) as caught:
        run(toy_settings(world, 12))
    (problem,) = caught.value.problems
    saved = last_good // 4 * 4
    assert problem.path == "learning_rate"
    assert found in problem.value
    assert f"in step {last_good + (2 if found == 'loss nan' else 1)}" in problem.value
    assert f"the checkpoint of step {saved}" in problem.cure
    state = TrainingRun(world / "run", 2).latest()
    assert state is not None
    assert state.step == saved
    assert all(tensor.isfinite().all() for tensor in state.tensors.values())
    assert sorted(path.name for path in (world / "run" / "checkpoints").iterdir())[-1] == f"step-{saved:08d}"
    assert all(math.isfinite(row["loss"]) for row in curve(world / "run"))


def test_weights_that_are_finite_but_of_no_use_are_not_saved(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(optimiser: Optimiser, learning_rate: float) -> None:
        for parameter in optimiser._parts[0][1].values():
            parameter.data.fill_(1e38)

    monkeypatch.setattr(Optimiser, "step", step)
    with pytest.raises(ConfigError, match=r"a held-out loss of nan in step 1.*no checkpoint, as none was due"):
        run(toy_settings(world, 4, checkpoint_every_steps=1))
    assert not list((world / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("held_out", [True, False])
def test_features_that_are_not_finite_are_named(held_out: bool, world: Path) -> None:
    store = FeatureStore(world / "store")
    quiet = Trainer(toy_settings(world, 4), loud(world), read_target(world / "target"), store, HERE)
    spoilt = quiet._held_out[0] if held_out else quiet._training[0]

    def produce(order: Iterator[int]) -> Iterator[FeatureRecord]:
        for index in order:
            for record in store.read([index]):
                features = record.features * (math.nan if index == spoilt else 1.0)
                yield replace(record, features=features)

    stream = FeatureStream(store.spec, store.lengths_tokens, produce, in_flight=3)
    with pytest.raises(ArtifactError, match=r"features toy: must be finite .*Make the features again"):
        run(toy_settings(world, 40), stream)


def test_a_full_disk_stops_the_run_and_loses_nothing(world: Path) -> None:
    run(toy_settings(world, 8, run_dir=world / "whole"))
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
    code = limited + "from support.toy_training import main; main()"
    child = subprocess.run(
        [sys.executable, "-c", code, str(world), "8"], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert "ArtifactError" in child.stderr
    assert "untouched" in child.stderr
    run(toy_settings(world, 8))
    assert curve(world / "run") == curve(world / "whole")


def test_features_of_another_target_are_refused(world: Path) -> None:
    write_world(world / "other", seed=1)
    with pytest.raises(ArtifactError, match="another target"):
        run(toy_settings(world, 4), FeatureStore(world / "other" / "store"))


def test_a_run_folder_with_other_settings_is_refused(world: Path) -> None:
    run(toy_settings(world, 4))
    with pytest.raises(ArtifactError, match=r"settings it began with \(found learning_rate 0.02, now 0.001\)"):
        run(toy_settings(world, 4, learning_rate=1e-3))
    with pytest.raises(ArtifactError, match=r"\(found draft.markov_rank 16, now 8\)"):
        run(toy_settings(world, 4, draft=SHAPE | {"markov_rank": 8}))


def test_a_run_of_before_resumes_with_the_defaults_of_what_it_did_not_know(world: Path) -> None:
    run(toy_settings(world, 4))
    file = world / "run" / "run.json"
    written = json.loads(file.read_text())
    del written["settings"]["soft_labels"], written["settings"]["draft"]["method"]
    file.write_text(json.dumps(written))
    run(toy_settings(world, 4))
    written["settings"]["forgotten"] = 3
    file.write_text(json.dumps(written))
    with pytest.raises(ArtifactError, match=r"forgotten 3, now None"):
        run(toy_settings(world, 4))


def test_contradicting_settings_are_all_named_at_once(world: Path) -> None:
    settings = toy_settings(world, 4, draft=None, held_out_sequences=48, rows_per_step=3)
    with pytest.raises(ConfigError) as caught:
        train(settings, FeatureStore(world / "store"), DistributedContext(0, 2, torch.device("cpu")), QUIET, {})
    assert {problem.path for problem in caught.value.problems} == {"draft", "held_out_sequences", "rows_per_step"}


GOOD = {"target": "t", "run_dir": "r", "steps": 3, "init_from": "d"}
SHAPE_OF_FOUR = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 8}


def test_settings_of_a_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{target: t, run_dir: r, steps: 3, init_from: d, learning_rate: 6e-4}")
    settings = load_train_settings(tmp_path / "run.yaml")
    assert (settings.steps, settings.learning_rate, settings.target) == (3, 6e-4, Path("t"))


WRONG: dict[str, tuple[dict[str, object], set[str]]] = {
    "all at once": (
        {"steps": 0, "learnin_rate": 1, "draft": {"mask_token_id": -1}},
        {
            "steps: must be more than 0 (found 0). Use more than 0.",
            "learnin_rate: is not a key (found 1). Did you mean learning_rate?",
            "draft.mask_token_id: must be at least 0 (found -1). Use 0 or more.",
            "draft.head_dim: is required (found nothing). Add it.",
        },
    ),
    "infinite": ({"learning_rate": math.inf}, {"learning_rate: must be a finite number (found inf)"}),
    "not a number": ({"weight_decay": math.nan}, {"weight_decay: must be a finite number (found nan)"}),
    "text": ({"grad_clip": "much"}, {"grad_clip: must be a number (found 'much')"}),
    "a fraction": ({"steps": 1.5}, {"steps: must be a whole number (found 1.5)"}),
    "yes": ({"steps": True}, {"steps: must be a whole number (found True)"}),
    "a number for a path": ({"target": 5}, {"target: must be a path (found 5)"}),
    "an odd head": (
        {"draft": SHAPE_OF_FOUR | {"mask_token_id": 1, "head_dim": 15}},
        {"draft.head_dim: must be a multiple of 2 (found 15)"},
    ),
    "uneven heads": (
        {"draft": SHAPE_OF_FOUR | {"mask_token_id": 1, "num_attention_heads": 3}},
        {"draft: num_attention_heads 3 must be a multiple of num_key_value_heads 2"},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_setting_is_named_with_rule_value_and_cure(name: str, tmp_path: Path) -> None:
    changes, expected = WRONG[name]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(GOOD | changes))
    with pytest.raises(ConfigError) as caught:
        load_train_settings(tmp_path / "run.yaml")
    found = [str(problem) for problem in caught.value.problems]
    assert all(any(line.startswith(start) for line in found) for start in expected), found


def test_a_mask_token_outside_the_target_s_vocabulary_is_a_wrong_setting(world: Path) -> None:
    settings = toy_settings(world, 4)
    assert settings.draft is not None
    with pytest.raises(ConfigError, match=r"draft\.mask_token_id: must be a token of the target's vocabulary, 0 to 63"):
        run(toy_settings(world, 4, draft=settings.draft.model_dump() | {"mask_token_id": 64}))


@pytest.mark.parametrize("changes", [{"hidden_size": 16}, {"target_layer_ids": (0, 3)}])
def test_features_of_another_shape_of_target_are_refused(changes: dict[str, object], world: Path) -> None:
    """A store that doesn't say whose it is."""
    store = FeatureStore(world / "store")
    other = store.spec.model_copy(update={"target_sha256": "", **changes})
    stream = FeatureStream(other, store.lengths_tokens, lambda order: iter(()), in_flight=1)
    with pytest.raises(ArtifactError, match="features toy: must be of the target, 3 layers of width 32"):
        run(toy_settings(world, 4), stream)
