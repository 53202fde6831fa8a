"""Refitting a confidence head: text-dependent errors are mended, honest heads kept, and nothing is learned by heart."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.calibration.confidence import RIDGES, refit
from sparktier.drafter.calibration.samples import ConfidenceSamples, joined_samples
from sparktier.drafter.evaluation.metrics import ece_frac
from sparktier.drafter.model.heads import LinearHead

GAMMA, WIDTH, ROUNDS_PER_ANSWER = 3, 12, 40
# Reads input 0, which tells how likely a row is; input 1 tells which of two texts it is of.
HEAD = LinearHead(np.eye(WIDTH)[0] * 1.5, 0.5)


def drawn(answers: int, seed: int, off: float) -> ConfidenceSamples:
    """Draw rounds of two texts, in which HEAD is `off` nats too sure of one and as much too modest of the other."""
    rng = np.random.default_rng(seed)
    text = rng.choice([-1.0, 1.0], answers).repeat(ROUNDS_PER_ANSWER)
    inputs = rng.normal(size=(len(text), GAMMA, WIDTH)).astype(np.float32)
    inputs[:, :, 1] = text[:, None]
    honest = HEAD.logits(inputs) - off * text[:, None]
    accepted = np.cumprod(rng.random(honest.shape) < expit(honest), axis=1).astype(np.float64)
    return ConfidenceSamples(inputs, accepted, np.arange(answers).repeat(ROUNDS_PER_ANSWER))


def worst_ece(head: LinearHead, samples: ConfidenceSamples) -> float:
    """Return the larger ECE of the two texts, over the products that a planner would use."""
    survival = np.cumprod(expit(head.logits(samples.inputs)), axis=1)
    texts = (samples.inputs[:, 0, 1] < 0, samples.inputs[:, 0, 1] > 0)
    return max(ece_frac(survival[text].ravel(), samples.accepted[text].ravel()) for text in texts)


def test_errors_that_depend_on_the_text_are_mended() -> None:
    fresh = drawn(1000, seed=2, off=0.8)
    assert worst_ece(HEAD, fresh) > 0.05, "the test must start from something wrong"
    fit = refit(HEAD, drawn(400, seed=1, off=0.8))
    assert worst_ece(fit.head, fresh) < 0.02
    assert fit.ridge == RIDGES[-1], "with this much to learn from, nothing should hold the weights back"
    assert fit.held_out_loss_after_nats < fit.held_out_loss_before_nats - 0.02


def test_a_constant_that_temperatures_cannot_mend_is_found() -> None:
    fit = refit(LinearHead(HEAD.weight, HEAD.bias + 0.8), drawn(400, seed=10, off=0.0))
    assert fit.head.bias == pytest.approx(HEAD.bias, abs=0.05)
    assert fit.head.weight == pytest.approx(HEAD.weight, abs=0.05)


def test_an_honest_head_is_kept() -> None:
    fit = refit(HEAD, drawn(60, seed=3, off=0.0))
    assert fit.head.weight == pytest.approx(HEAD.weight, abs=0.12)
    assert fit.head.bias == pytest.approx(HEAD.bias, abs=0.12)


def test_a_head_that_is_surest_where_it_fails_is_turned() -> None:
    wrong, samples = LinearHead(-HEAD.weight, -HEAD.bias), drawn(200, seed=4, off=0.0)
    assert worst_ece(refit(wrong, samples).head, samples) < 0.02


def test_answers_are_not_learned_by_heart() -> None:
    # Each answer has an input of its own and a luck of its own: rounds of one answer tell of its other rounds only.
    rng, answers = np.random.default_rng(5), 24
    samples = drawn(answers, seed=5, off=0.0)
    own = np.eye(answers, dtype=np.float32)[samples.answers][:, None].repeat(GAMMA, axis=1)
    inputs = np.concatenate((samples.inputs, own), axis=2)
    luck = rng.normal(0.0, 2.0, answers)[samples.answers][:, None]
    chance = expit(HEAD.logits(samples.inputs) + luck)
    lucky = np.cumprod(rng.random(chance.shape) < chance, axis=1).astype(np.float64)
    head = LinearHead(np.concatenate((HEAD.weight, np.zeros(answers))), HEAD.bias)
    by_answer = refit(head, ConfidenceSamples(inputs, lucky, samples.answers))
    by_round = refit(head, ConfidenceSamples(inputs, lucky, np.arange(len(lucky))))
    assert by_round.ridge < by_answer.ridge, "the rounds must tempt a fit that sees other rounds of their answers"
    assert by_round.held_out_loss_after_nats < by_answer.held_out_loss_after_nats


def test_rows_that_were_never_reached_say_nothing() -> None:
    samples = drawn(20, seed=6, off=0.5)
    fit = refit(HEAD, samples)
    unreached = np.concatenate((np.ones((len(samples.accepted), 1)), samples.accepted[:, :-1]), axis=1) == 0
    moved = refit(HEAD, replace(samples, inputs=np.where(unreached[:, :, None], np.float32(7.0), samples.inputs)))
    assert unreached.any()
    assert moved.head.weight.tolist() == fit.head.weight.tolist()
    assert moved[1:] == fit[1:]


@pytest.mark.parametrize("answers", [1, 3])
def test_too_few_answers_to_judge_a_fit_on_others_are_refused(answers: int) -> None:
    """Of one answer, losses on held-out ones would be those of nothing."""
    with pytest.raises(ArtifactError, match=rf"at least 4 answers .* \(found {answers}\)\. Give more prompts"):
        refit(HEAD, drawn(answers, seed=7, off=0.0))


@pytest.mark.parametrize("answers", [4, 5])
def test_few_answers_that_separate_perfectly_still_fit(answers: int) -> None:
    samples = drawn(answers, seed=7, off=0.0)
    sure = np.cumprod(samples.inputs[:, :, 0] > 0, axis=1).astype(np.float64)
    fit = refit(HEAD, replace(samples, accepted=sure))
    assert np.isfinite(fit.head.weight).all()
    assert np.isfinite(fit.head.bias)


def test_joined_samples_keep_answers_apart() -> None:
    first, second = drawn(3, seed=8, off=0.0), drawn(2, seed=9, off=0.0)
    nothing = replace(first, inputs=first.inputs[:0], accepted=first.accepted[:0], answers=first.answers[:0])
    joined = joined_samples([first, nothing, second])
    assert joined.answers.tolist() == np.arange(5).repeat(ROUNDS_PER_ANSWER).tolist()
    assert np.array_equal(joined.inputs[len(first.inputs) :], second.inputs)
    with pytest.raises(ArtifactError, match="longer than a draft block"):
        refit(HEAD, nothing)
