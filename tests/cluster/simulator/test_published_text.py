"""Drawn texts have the paper's figures: acceptance by position, survivals that come true, and their spread."""

import numpy as np
import pytest

from sparktier.cluster.simulator.answers import Answer
from sparktier.cluster.simulator.published_text import PublishedTexts, published_figures

FIGURES = published_figures()
NODES = 7


def drawn(kind: str, *, answers: int, **changes: float) -> list[Answer]:
    alone = {
        name: part.model_copy(update={"share_frac": float(name == kind)}) for name, part in FIGURES.classes.items()
    }
    texts = PublishedTexts(FIGURES.model_copy(update={"classes": alone, **changes}), nodes=NODES)
    rng = np.random.default_rng(3)
    return [texts.answer(rng) for _ in range(answers)]


def inner(answer: Answer) -> slice:
    """Places whose whole draft lies inside the answer."""
    return slice(0, max(0, answer.tokens - 1 - NODES))


@pytest.mark.parametrize("kind", list(FIGURES.classes))
def test_a_class_is_accepted_as_in_figure_2(kind: str) -> None:
    answers = drawn(kind, answers=600)
    depth = np.concatenate([each.accepted[inner(each), -1] for each in answers])
    reached = np.array([np.mean(depth >= position) for position in range(1, NODES + 1)])
    conditional = reached / np.concatenate(([1.0], reached[:-1]))
    assert np.abs(conditional - FIGURES.classes[kind].conditional_acceptance).max() < 0.02


def test_survivals_come_true() -> None:
    answers = drawn("chat", answers=400)
    survival = np.concatenate([each.survival[inner(each)] for each in answers])
    depth = np.concatenate([each.accepted[inner(each), -1] for each in answers])
    for position in range(NODES):
        predicted = survival[:, position]
        for low in np.arange(0.0, 1.0, 0.2):
            inside = (predicted >= low) & (predicted < low + 0.2)
            if inside.sum() > 2000:
                assert abs(predicted[inside].mean() - np.mean(depth[inside] > position)) < 0.03


def test_survivals_spread_as_in_figure_6() -> None:
    answers = drawn("chat", answers=300)
    survival = np.concatenate([each.survival[inner(each)] for each in answers])
    levels = np.linspace(0.02, 0.98, 49)
    off = []
    for position, histogram in FIGURES.survival_histograms.items():
        predicted, accepted = np.array(FIGURES.reliability[position]).T
        # What the paper's drafter predicts, as it comes true.
        shown = np.maximum.accumulate(np.interp((np.arange(20) + 0.5) / 20, predicted, accepted))
        share = np.array(histogram) / np.sum(histogram)
        published = np.interp(levels, np.cumsum(share) - share / 2, shown)
        off.append(np.abs(np.quantile(survival[:, position - 1], levels) - published).mean())
    assert np.mean(off) < 0.05


def test_an_answer_ends_where_it_ends() -> None:
    for answer in drawn("math", answers=20):
        places = np.arange(len(answer.survival))
        left = answer.tokens - 1 - places
        assert (places + 1 + answer.accepted[:, -1] + 1 <= answer.tokens).all()
        assert (np.count_nonzero(answer.survival, axis=1) == np.clip(left - 1, 0, NODES)).all()
        assert (np.diff(answer.survival, axis=1) <= 0).all()
        assert (np.diff(answer.accepted, axis=1) >= 0).all()


def test_requests_differ_by_their_difficulty() -> None:
    def spread(share: float) -> float:
        answers = drawn("chat", answers=200, request_share_frac=share)
        return float(np.std([each.accepted[inner(each), -1].mean() for each in answers if each.tokens > 100]))

    assert spread(0.6) > 1.5 * spread(0.0)
