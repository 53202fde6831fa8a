"""The demo drafter's recipe, run small on a tiny target: every stage, resuming, and who may not train on what."""

import hashlib
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import sha256_of
from sparktier.drafter.data.answer_stores import LEAST_TOKENS
from sparktier.drafter.data.feature_store import FeatureStore
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.prompts import read_prompts
from sparktier.drafter.data.target import read_target
from sparktier.drafter.demo import recipe as demo_recipe
from sparktier.drafter.demo.recipe import Scale
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.serving.demo_model import ensure_demo_model
from sparktier.serving.drafting import demo_drafter
from sparktier.serving.drafting.demo_drafter import Course
from support import replica_http
from support.deployment import deployed
from support.generation import set_plan
from support.tiny_moe import make_tiny_moe
from support.toy_training import curve

CPU = torch.device("cpu")
TREE = 3

SCALE = Scale(
    functions=40,
    everyday=40,
    questions=40,
    own_questions=4,
    own_problems=2,
    calibrate=40,
    open_questions=70,  # more than a batch: a class of temperature is fitted once all the same
    answer_tokens=12,
    steps=60,
    held_out=4,
)


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = "".join(json.dumps({"question": f"{n} and {n} is?", "answer": "unused"}) + "\n" for n in range(4000))
    (tmp_path / "train.jsonl").write_text(text)
    monkeypatch.setattr(demo_recipe, "QUESTIONS_SHA256", hashlib.sha256(text.encode()).hexdigest())
    return tmp_path / "train.jsonl"


@pytest.mark.timeout(1800)
@pytest.mark.prove  # minutes of CPU time
def test_the_recipe_makes_a_calibrated_drafter_and_repeats_nothing(tmp_path: Path, questions: Path) -> None:
    target = make_tiny_moe(tmp_path / "target", context_gain=0.2)
    draft = demo_recipe.shape(4, heads=2, head_dim=32, intermediate_size=64)
    work = tmp_path / "work"

    def made() -> Path:
        return Course(target, work, SCALE, CPU, Console(quiet=True)).make((0, 2), draft, questions)

    folder = made()
    assert load_draft(folder, read_target(target)).config.block_size == 5
    assert len(json.loads((folder / "sts.json").read_text())["temperatures"]) == 5
    classes = [fit["temperature_class"] for fit in json.loads((folder / "children.json").read_text())["fits"]]
    assert classes == ["greedy", "warm"]
    names = ("made", "calibrate", "evaluate")
    splits = {name: {prompt.split for prompt in read_prompts(work / f"{name}.jsonl")} for name in names}
    assert splits == {"made": {"train"}, "calibrate": {"calibrate"}, "evaluate": {"evaluate"}}
    files = {path: path.stat().st_mtime_ns for path in (work / "features").rglob("*")}
    weights = sha256_of(folder / "model.safetensors")
    assert sha256_of(made() / "model.safetensors") == weights
    assert {path: path.stat().st_mtime_ns for path in (work / "features").rglob("*")} == files


@pytest.mark.engine
@pytest.mark.timeout(5400)
@pytest.mark.prove  # three minutes of two cores, many more where others use them, and a start of the engine
def test_three_minutes_from_nothing_make_a_drafter_that_the_engine_drafts_with(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparktier.serving.drafting.demo_drafter", "--minutes", "3"]
    done = subprocess.run(
        [*command, "--work", str(tmp_path / "work")], cwd=tmp_path, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr
    for stage in ("answers: calibrate-T0: ", "answers: made: ", "training: ", "calibration", "evaluation: "):
        assert stage in done.stdout, done.stdout
    assert re.search(r"answers: made: \d+ of \d+ prompts, \d+ tokens/s, \d+ s left", done.stdout)
    folder = tmp_path / "work" / "draft"
    assert load_draft(folder, read_target(ensure_demo_model())).config.block_size == 5
    rows = json.loads((tmp_path / "work" / "evaluation.json").read_text())["rows"]
    assert [row["temperature"] for row in rows] == [0.0, 1.0]
    assert all(row["accepted_length"] >= 1.0 and 0.0 <= row["ece_frac"] < 1.0 for row in rows)
    losses = [row["cross_entropy"] for row in curve(tmp_path / "work" / "run")]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4]), "it learned"
    speculation = {"speculation.method": "tree", "speculation.draft_path": folder}
    with deployed(
        ensure_demo_model(), tmp_path / "log", **speculation, **{"model.dtype": "auto", "model.context_tokens": 2048}
    ) as deployment:
        assert set_plan(deployment.replica_url(), {"sparktier_rung": TREE})
        said = deployment.client().chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            max_tokens=24,
            temperature=0,
        )
        ranks = replica_http.get(f"{deployment.replica_url()}/sparktier/ranks", timeout=60.0).json()
    assert "Paris" in str(said.choices[0].message.content)
    assert said.usage is not None
    assert said.usage.model_dump()["sparktier"]["accepted_length"] >= 1.0
    assert "children.json" in ranks[0]["draft_calibration"]


def test_stages_share_the_minutes_and_keep_what_they_have_when_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe whose time is up from the start still answers a batch of each family, for a few tokens, and ends."""
    monkeypatch.setattr(demo_drafter, "LEAST_STEPS", 4)
    target = make_tiny_moe(tmp_path / "target", context_gain=0.2)
    scale = replace(Scale.within(0.0, on_gpu=False), answer_tokens=40)
    course = Course(target, tmp_path / "work", scale, CPU, Console(quiet=True))
    limits = [course.until_s(stage) for stage in demo_recipe.DEADLINES]
    assert limits == sorted(limits)
    assert limits[-1] <= time.monotonic()
    local = LocalTarget(target, (0, 2))
    course._write_prompt_files(local, None)
    stores = [FeatureStore(store) for store in course._answers(local, "made", "made", (0.0, 1.0))]
    [store] = stores
    answers = [int(record.answer_mask.sum()) for record in store.read(range(len(store.lengths_tokens)))]
    assert set(answers) == {LEAST_TOKENS}
    assert len(answers) == scale.batch
    # The next call takes what is there: its time is another's.
    assert course._answers(local, "made", "made", (0.0, 1.0)) == [store.folder]


def test_the_recipe_of_a_gpu_is_the_same_with_larger_batches() -> None:
    small, large = Scale.within(10.0, on_gpu=False), Scale.within(10.0, on_gpu=True)
    assert (small.minutes, large.minutes) == (10.0, 10.0)
    assert small.batch < Scale().batch < large.batch
    assert replace(large, batch=64, steps=3600, minutes=None) == Scale()


def test_a_gpu_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo-drafter", "--device", "cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert demo_drafter.main() == 2
    assert "DEVICE: torch must see a GPU" in " ".join(capsys.readouterr().out.split())


def test_other_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="must be here"):
        demo_recipe.read_questions(tmp_path / "train.jsonl")
    (tmp_path / "train.jsonl").write_text('{"question": "1 + 1?"}\n')
    with pytest.raises(ArtifactError, match="must have the digest"):
        demo_recipe.read_questions(tmp_path / "train.jsonl")
