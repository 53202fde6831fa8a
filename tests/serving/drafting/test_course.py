"""`sparktier train` from prompts to an exported drafter, on a tiny target in this process, and how it resumes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sparktier.configs.files import sha256_of
from sparktier.drafter.data.chat_tokenizer import ChatTokenizer
from sparktier.drafter.data.feature_store import FeatureStore
from sparktier.drafter.data.prompts import Prompt, read_prompts, write_prompts
from sparktier.drafter.data.target import read_target
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.serving.cli.main import main
from support.oracles.oracle_draft import make_oracle_draft
from support.tiny_moe import make_tiny_moe

PROMPTS = [Prompt((f"Question {number}, please.",)) for number in range(120)]
RUN = {
    "steps": 3, "row_tokens": 64, "rows_per_step": 2, "anchors_per_row": 8, "held_out_sequences": 2,
    "precision": "fp32", "learning_rate": 1e-5, "checkpoint_every_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("course")
    make_tiny_moe(folder / "model", context_gain=0.3)
    make_oracle_draft(folder / "draft", folder / "model", block_tokens=3, gains=(8.0, 6.0))
    write_prompts(folder / "asked.jsonl", PROMPTS)
    return folder


@pytest.fixture
def run_file(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def written(**data: object) -> Path:
        asked = {"prompts": [str(folder / "asked.jsonl")], "answer_tokens": 16, "limit": 12, "judged": 6, "batch": 8}
        run = RUN | {"target": str(folder / "model"), "run_dir": str(tmp_path / "run"), "data": asked | data}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
        return tmp_path / "run.yaml"

    return written


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_one_command_leads_from_prompts_to_an_exported_drafter_and_repeats_nothing(
    folder: Path, tmp_path: Path, run_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(run_file()), "--start", str(folder / "draft")]
    assert main(command) == 0
    draft, shown = tmp_path / "run" / "draft", capsys.readouterr().out
    assert shown.splitlines()[-1] == f"draft {draft}"
    assert "answers: train: 12 of 12 prompts," in shown
    assert "tokens/s" in shown
    assert load_draft(draft, read_target(folder / "model")).config.target_layer_ids == (0, 2)
    assert len(json.loads((draft / "sts.json").read_text())["temperatures"]) == 3
    fits = json.loads((draft / "children.json").read_text())["fits"]
    assert [fit["temperature_class"] for fit in fits] == ["greedy", "warm"]
    rows = json.loads((tmp_path / "run" / "evaluation.json").read_text())["rows"]
    assert [(row["dataset"], row["temperature"]) for row in rows] == [("evaluate-T0", 0.0), ("evaluate-T1", 1.0)]
    assert all(row["accepted_length"] > 1.1 for row in rows)
    stores = {
        store.name: FeatureStore(store).spec.temperature for store in (tmp_path / "run/features").glob("train-*-T*")
    }
    assert set(stores.values()) == {0.0, 1.0}
    before = times(tmp_path / "run")
    assert main(command) == 0
    assert {path: when for path, when in times(tmp_path / "run").items() if path.name != "metrics.jsonl"} == {
        path: when for path, when in before.items() if path.name != "metrics.jsonl"
    }


def test_a_killed_run_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparktier.serving.drafting import course

    command = ["train", str(run_file()), "--start", str(folder / "draft")]

    def killed(*_: object) -> Path:
        raise RuntimeError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(course, "calibrate", killed)
        with pytest.raises(RuntimeError, match="killed"):
            main(command)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003"
    trained = sha256_of(checkpoint / "state.safetensors")
    stores = times(tmp_path / "run" / "features")
    assert not (tmp_path / "run" / "draft").exists(), "the draft appears whole or not at all"
    assert main(command) == 0
    assert sha256_of(checkpoint / "state.safetensors") == trained
    assert times(tmp_path / "run" / "features") == stores
    assert (tmp_path / "run" / "draft" / "children.json").exists()


def test_thinking_is_what_the_chat_template_is_told(folder: Path, tmp_path: Path) -> None:
    make_tiny_moe(tmp_path / "thinker")
    template = "{{ messages[0]['content'] }}{% if enable_thinking is defined %} think={{ enable_thinking }}{% endif %}"
    (tmp_path / "thinker" / "chat_template.jinja").write_text(template)

    def laid_out(thinking: bool | None) -> str:
        chat = ChatTokenizer(tmp_path / "thinker", thinking=thinking)
        return chat.decode(chat.encode(Prompt(("Why?",))))

    assert [laid_out(choice) for choice in (None, True, False)] == ["Why?", "Why? think=True", "Why? think=False"]


BAD = {
    "no split": ({"prompts": "FEW"}, "must have prompts of the calibrate split (found none of 1)"),
    "no address": ({"engine": "localhost:3000"}, "data.engine"),
    "no prompts": ({"prompts": []}, "data.prompts"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_one_clear_line(
    name: str, folder: Path, tmp_path: Path, run_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    few = next(prompt for prompt in PROMPTS if prompt.split == "train")
    write_prompts(tmp_path / "few.jsonl", [few])
    changes, message = BAD[name]
    changes = {key: [str(tmp_path / "few.jsonl")] if value == "FEW" else value for key, value in changes.items()}
    assert main(["train", str(run_file(**changes)), "--start", str(folder / "draft")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_prompts_beside_responses_are_read_in_the_forms_that_people_have(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi", "response": "unused"},
        {"prompt": [{"role": "user", "content": "You"}], "chosen": []},
        {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "There"}]},
        {"conversations": [{"from": "human", "value": "Everyone"}, {"from": "gpt", "value": "unused"}]},
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [prompt.turns for prompt in read_prompts(tmp_path / "asked.jsonl")] == [
        ("Hi",), ("You",), ("There",), ("Everyone",),
    ]  # fmt: skip
