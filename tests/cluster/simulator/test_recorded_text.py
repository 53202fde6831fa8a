"""The file of recorded text: what was written is drawn again, rows are nested, and a damaged file is named."""

from pathlib import Path

import numpy as np
import pytest

from sparktier.cluster.simulator.answers import TokenIds
from sparktier.cluster.simulator.recorded_text import Drafts, Recorded, read_recorded, write_recorded
from sparktier.configs.errors import ArtifactError


def drafts(places: int, nodes: int, seed: int) -> Drafts:
    rng = np.random.default_rng(seed)
    survival = np.sort(rng.random((places, nodes)).astype(np.float32), axis=1)[:, ::-1].astype(np.float64)
    return Drafts(survival, rng.random((places, nodes)) < survival)


def made(places: int, seed: int) -> Recorded:
    ids = TokenIds(tuple(range(10 + seed)), tuple(range(100, 101 + places)))
    return Recorded(ids, f"set {seed % 2}", {"tree12": drafts(places, 11, seed), "chain5": drafts(places, 5, seed)})


ANSWERS = [made(40 + seed, seed) for seed in range(5)]


def test_what_was_recorded_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "answers.npz"
    write_recorded(path, ANSWERS, source="made")
    for kind in ("tree12", "chain5"):
        texts, rng = read_recorded(path, kind), np.random.default_rng(0)
        drawn = {answer.prompt_tokens: answer for answer in (texts.answer(rng) for _ in range(100))}
        assert sorted(drawn) == [10, 11, 12, 13, 14]
        for recorded in ANSWERS:
            answer, own = drawn[len(recorded.ids.prompt)], recorded.drafts[kind]
            assert np.array_equal(answer.survival, own.survival)
            assert answer.accepted[:, 0].sum() == 0
            assert np.array_equal(np.diff(answer.accepted, axis=1), own.came_true)
            assert (answer.kind, answer.is_chain, answer.ids) == (recorded.dataset, kind == "chain5", recorded.ids)
            assert answer.tokens == len(recorded.ids.answer)


def test_the_rest_of_an_answer_has_the_begun_part_in_its_prompt(tmp_path: Path) -> None:
    write_recorded(tmp_path / "answers.npz", ANSWERS[:1], source="made")
    (whole,) = read_recorded(tmp_path / "answers.npz", "chain5").answers
    rest = whole.last(3)
    assert whole.ids is not None
    assert rest.ids is not None
    assert rest.ids.prompt + rest.ids.answer == whole.ids.prompt + whole.ids.answer
    assert (rest.tokens, len(rest.ids.answer), rest.prompt_tokens) == (4, 4, 10 + 41 - 4)
    assert np.array_equal(rest.survival, whole.survival[-3:])


def test_the_same_answers_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first.npz", "second.npz"):
        write_recorded(tmp_path / name, ANSWERS, source="made")
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.npz"
    for content in (None, b"no archive", b"PK\x03\x04torn"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ArtifactError, match="must be a file of recorded text"):
            read_recorded(path, "tree12")
    write_recorded(path, ANSWERS, source="made")
    with pytest.raises(ArtifactError, match="must have drafts by chain7 "):
        read_recorded(path, "chain7")
