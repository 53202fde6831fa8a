"""The demo drafter's recipe, run small on a tiny target: every stage, resuming, and who may not train on what."""

import hashlib
import json
from pathlib import Path

import pytest
from rich.console import Console

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import sha256_of
from sparktier.drafter.data.prompts import read_prompts
from sparktier.drafter.data.target import read_target
from sparktier.drafter.demo import recipe as demo_recipe
from sparktier.drafter.demo.recipe import Scale
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.serving.drafting.demo_drafter import make
from support.tiny_moe import make_tiny_moe

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
    console = Console(quiet=True)

    def made() -> Path:
        return make(target, (0, 2), draft, questions, tmp_path / "work", SCALE, console)

    folder = made()
    assert load_draft(folder, read_target(target)).config.block_size == 5
    assert len(json.loads((folder / "sts.json").read_text())["temperatures"]) == 5
    classes = [fit["temperature_class"] for fit in json.loads((folder / "children.json").read_text())["fits"]]
    assert classes == ["greedy", "warm"]
    splits = {
        name: {prompt.split for prompt in read_prompts(tmp_path / "work" / f"{name}.jsonl")}
        for name in ("made", "calibrate")
    }
    assert splits == {"made": {"train"}, "calibrate": {"calibrate"}}
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "features").rglob("*")}
    weights = sha256_of(folder / "model.safetensors")
    assert sha256_of(made() / "model.safetensors") == weights
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "features").rglob("*")} == files


def test_other_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="must be here"):
        demo_recipe.read_questions(tmp_path / "train.jsonl")
    (tmp_path / "train.jsonl").write_text('{"question": "1 + 1?"}\n')
    with pytest.raises(ArtifactError, match="must have the digest"):
        demo_recipe.read_questions(tmp_path / "train.jsonl")
