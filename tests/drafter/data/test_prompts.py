"""Prompts: splits that can't leak, files that are refused line by line, and a made set that anyone makes again."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.answers import Answer, read_answers
from sparktier.drafter.data.prompts import Prompt, distinct, of_split, read_prompt_files, read_prompts, write_prompts
from sparktier.drafter.demo.open_questions import open_questions
from sparktier.drafter.demo.prompt_making import make_prompts

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


BROKEN = {
    "cut": "{",
    "no object": "[]",
    "no turns": '{"turns": []}',
    "turns are text": '{"turns": "text"}',
    "a turn is a number": '{"turns": [1]}',
    "a blank turn": '{"turns": [" "]}',
    "another object": '{"text": "hi"}',
    "nobody asks": '{"messages": [{"role": "assistant", "content": "hi"}]}',
    "messages are text": '{"conversations": ["hi"]}',
    "an image": '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}',
    "half an emoji": '{"turns": ["half \\ud83d here"]}',
    "deep": "[" * 100_000,
    "deep in a field": '{"turns": ["a"], "meta": ' + "[" * 100_000,
    "an endless number": '{"turns": ["a"], "meta": ' + "1" * 5_000 + "}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"turns": ["fine"]}\n' + BROKEN[name] + "\n")
    with pytest.raises(ArtifactError, match=r"p\.jsonl:2: .*\(found .*\)\. \w+") as caught:
        read_prompts(tmp_path / "p.jsonl")
    assert len(str(caught.value)) < 500
    str(caught.value).encode("ascii")


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """JSON allows all of these unescaped inside strings; text files of some programs begin with a mark."""
    said = [f"before{mark}after" for mark in ("\u2028", "\u2029", "\x85", "\x7f")]
    lines = [json.dumps({"turns": [text]}, ensure_ascii=False) for text in said]
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [prompt.turns[0] for prompt in read_prompts(tmp_path / "p.jsonl")] == said
    answer = {"digest": "a\u2028b", "prompt_ids": [1], "answer_ids": [2, 3]}
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(answer, ensure_ascii=False).encode() + b"\n")
    assert [found.digest for found in read_answers(tmp_path / "a.jsonl")] == ["a\u2028b"]


CONVERSATIONS = {
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": "one"},
            {"from": "gpt", "value": "no"},
            {"from": "human", "value": "two"},
        ]
    },
    "OpenAI": {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": None},
            {"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "text", "text": "wo"}]},
        ]
    },
    "mixed": {"conversations": [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}], "id": 7},
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_of_others_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(CONVERSATIONS[name]))
    assert read_prompts(tmp_path / "p.jsonl") == [Prompt(("one", "two"))]


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_a_file_without_prompts_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(ArtifactError, match=r"p\.jsonl: must hold at least one prompt"):
        read_prompt_files([tmp_path / "p.jsonl"])


def test_files_of_one_name_are_not_one_set(tmp_path: Path) -> None:
    for folder, text in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        write_prompts(tmp_path / folder / "chat.jsonl", [Prompt((text,))])
    (tmp_path / "b" / "chat.jsonl").rename(tmp_path / "b" / "other.jsonl")
    found = read_prompt_files([tmp_path / "a" / "chat.jsonl", tmp_path / "b" / "other.jsonl"])
    assert found == {"chat": [Prompt(("one",))], "other": [Prompt(("two",))]}
    (tmp_path / "b" / "other.jsonl").rename(tmp_path / "b" / "chat.jsonl")
    with pytest.raises(ArtifactError, match=r"b/chat\.jsonl: files of prompts must differ in name.*a/chat\.jsonl"):
        read_prompt_files([tmp_path / "a" / "chat.jsonl", tmp_path / "b" / "chat.jsonl"])


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
    lines = [json.dumps(asdict(answer)) for answer in answers]
    path.write_text("\n".join([*lines, '{"digest": "d4", "prom']))
    assert read_answers(path) == [answers[0], answers[2]]
    assert answers[0].length_tokens == 5


@pytest.mark.parametrize("ids", [None, "12", [1.5], [True], [-1], [2**31], [1e999], ["\ud83d"]])
def test_a_broken_answer_is_named(ids: object, tmp_path: Path) -> None:
    rows = [
        {"digest": "d", "prompt_ids": [1], "answer_ids": [1, 2]},
        {"digest": "d", "prompt_ids": [1], "answer_ids": ids},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ArtifactError, match=r"a\.jsonl:2: .*answer_ids.*\(found "):
        read_answers(tmp_path / "a.jsonl")


def test_a_file_without_an_answer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(asdict(Answer("short", (1, 2), (3,)))) + "\n")
    with pytest.raises(ArtifactError, match=r"must hold an answer of 2 tokens or more \(found none\)"):
        read_answers(tmp_path / "a.jsonl")
