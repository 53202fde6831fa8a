"""The file of recorded text: what was written is drawn again, rows are nested, and a damaged file is named."""

from pathlib import Path

import numpy as np
import pytest

from sparktier.cluster.simulator.recorded_text import Recorded, read_recorded, write_recorded
from sparktier.configs.errors import ArtifactError


def made(places: int, nodes: int, seed: int) -> Recorded:
    rng = np.random.default_rng(seed)
    survival = np.sort(rng.random((places, nodes)).astype(np.float32), axis=1)[:, ::-1].astype(np.float64)
    return Recorded(survival, rng.random((places, nodes)) < survival, 10 + seed, f"set {seed % 2}")


ANSWERS = [made(40 + seed, 11, seed) for seed in range(5)]


def test_what_was_recorded_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "answers.npz"
    write_recorded(path, {"tree12": ANSWERS, "chain5": [made(9, 5, 1)]}, source="made")
    texts, rng = read_recorded(path, "tree12"), np.random.default_rng(0)
    drawn = {answer.prompt_tokens: answer for answer in (texts.answer(rng) for _ in range(100))}
    assert sorted(drawn) == [10, 11, 12, 13, 14]
    for recorded in ANSWERS:
        answer = drawn[recorded.prompt_tokens]
        assert np.array_equal(answer.survival, recorded.survival)
        assert answer.accepted[:, 0].sum() == 0
        assert np.array_equal(np.diff(answer.accepted, axis=1), recorded.came_true)
        assert (answer.kind, answer.is_chain, answer.tokens) == (recorded.dataset, False, len(recorded.survival) + 1)
    assert read_recorded(path, "chain5").answer(rng).is_chain


def test_the_same_answers_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first.npz", "second.npz"):
        write_recorded(tmp_path / name, {"tree12": ANSWERS}, source="made")
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.npz"
    for content in (None, b"no archive", b"PK\x03\x04torn"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ArtifactError, match="must be a file of recorded text"):
            read_recorded(path, "tree12")
    write_recorded(path, {"tree12": ANSWERS}, source="made")
    with pytest.raises(ArtifactError, match="must have drafts by chain5"):
        read_recorded(path, "chain5")
