"""Prompts: splits that can't leak, files that are refused line by line, and a made set that anyone makes again."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.answers import Answer, append_answer, read_answers
from sparktier.drafter.open_questions import open_questions
from sparktier.drafter.prompt_making import make_prompts
from sparktier.drafter.prompts import Prompt, distinct, of_split, read_prompts, write_prompts

SPLITS = ("train", "calibrate", "evaluate")


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_variants_of_a_prompt_share_its_split(text: str, second: str) -> None:
    variant = "  " + text.replace(" ", "\n ") + "\t"
    assert Prompt((text, second)).split == Prompt((text,)).split
    assert Prompt((variant,)).digest == Prompt((text,)).digest


def test_splits_are_disjoint_complete_and_of_the_stated_size() -> None:
    prompts = [Prompt((f"question {number}",)) for number in range(20_000)]
    parts = {split: of_split(prompts, split) for split in SPLITS}  # type: ignore[arg-type]
    assert sum(len(part) for part in parts.values()) == len(prompts)
    assert {split: round(len(part) / 200) for split, part in parts.items()} == pytest.approx(
        {"train": 90, "calibrate": 5, "evaluate": 5}, abs=1
    )
    assert not {p.digest for p in parts["train"]} & {p.digest for p in parts["evaluate"] + parts["calibrate"]}


def test_prompts_read_back(tmp_path: Path) -> None:
    prompts = [Prompt(("one\nline", "and a turn")), Prompt(("ümlaut",))]
    write_prompts(tmp_path / "p.jsonl", prompts)
    assert read_prompts(tmp_path / "p.jsonl") == prompts


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"turns": []}', '{"turns": "text"}', '{"turns": [1]}', '{"turns": [" "]}']
)
def test_a_broken_line_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"turns": ["fine"]}\n' + line + "\n")
    with pytest.raises(ArtifactError, match=r"p\.jsonl:2"):
        read_prompts(tmp_path / "p.jsonl")


def test_distinct_keeps_the_first() -> None:
    first, other = Prompt(("A b", "x")), Prompt(("c",))
    assert distinct([first, other, Prompt(("a  B",)), other]) == [first, other]


def test_made_prompts_are_many_distinct_mixed_and_made_again() -> None:
    prompts = make_prompts(1500, seed=1)
    assert prompts == make_prompts(1500, seed=1)
    assert len(prompts) == 1500
    assert len({prompt.digest for prompt in prompts}) == 1500
    kinds = Counter("code" if "Python" in prompt.turns[0] else "text" for prompt in prompts)
    assert 400 < kinds["code"] < 600
    assert max(len(prompt.turns[0]) for prompt in prompts) < 4000


def test_open_questions_judge_only_and_are_of_many_kinds() -> None:
    prompts = open_questions(64, seed=1)
    assert prompts == open_questions(64, seed=1)
    assert prompts != open_questions(64, seed=2)
    assert len({prompt.digest for prompt in prompts}) == 64
    assert {prompt.split for prompt in prompts} == {"calibrate"}
    assert len({prompt.turns[0].split()[0] for prompt in prompts}) > 10
    assert not [prompt for prompt in prompts if "{" in prompt.turns[0]]


def test_answers_read_back_without_a_cut_line_and_without_stubs(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    answers = [Answer("d1", (1, 2), (3, 4, 5)), Answer("d2", (1,), (9,)), Answer("d3", (7,), (8, 9))]
    for answer in answers:
        append_answer(path, answer)
    with path.open("a") as handle:
        handle.write('{"digest": "d4", "prom')
    assert read_answers(path) == [answers[0], answers[2]]
    assert answers[0].length_tokens == 5


def test_a_broken_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"digest": "d", "prompt_ids": [1]}) + "\n")
    with pytest.raises(ArtifactError, match=r"a\.jsonl:1.*answer_ids"):
        read_answers(tmp_path / "a.jsonl")
