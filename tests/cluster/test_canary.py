"""The canary's decisions: when it alarms, what it scores and at what cost, and absurd acceptance."""

import json
from pathlib import Path

import numpy as np
import pytest

from sparktier.cluster.canary import CanaryRules, ScoreBudget, WrongTokenTest, acceptance_state

RULES = CanaryRules()


def margins(tokens: int, *, far_frac: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(tokens) < far_frac, 2 * RULES.far_nats, 0.0)


def run_length(far_frac: float, *, seed: int, most: int) -> int:
    """Tokens to the first alarm; `most` without one."""
    reached = WrongTokenTest(RULES).levels(margins(most, far_frac=far_frac, seed=seed)) >= RULES.alarm_level
    return int(reached.argmax()) if reached.any() else most


def test_one_token_in_200_is_found_within_2000_and_noise_is_not() -> None:
    found = [run_length(RULES.wrong_frac, seed=seed, most=20_000) for seed in range(200)]
    assert np.median(found) <= 2000
    assert all(run_length(RULES.noise_frac / 5, seed=seed, most=200_000) == 200_000 for seed in range(20))


def test_the_evidence_does_not_depend_on_how_tokens_are_grouped() -> None:
    found = margins(5000, far_frac=0.003, seed=1)
    whole = WrongTokenTest(RULES).levels(found)
    parts = WrongTokenTest(RULES)
    for start in range(0, 5000, 7):
        parts.add(found[start : start + 7])
        assert parts.level == pytest.approx(whole[min(start + 6, 4999)])


def test_evidence_never_falls_below_nothing_so_a_late_fault_is_found_as_fast() -> None:
    test = WrongTokenTest(RULES)
    test.add(np.zeros(100_000))
    assert test.level == 0.0
    late = test.levels(margins(20_000, far_frac=RULES.wrong_frac, seed=3))
    assert int((late >= RULES.alarm_level).argmax()) == run_length(RULES.wrong_frac, seed=3, most=20_000)


@pytest.mark.parametrize(("tokens_s", "steps_s", "steps_each"), [(40, 16, 1), (8000, 40, 2), (5, 5, 1)], ids=str)
def test_enough_is_scored_and_in_no_more_steps_than_allowed(tokens_s: int, steps_s: int, steps_each: int) -> None:
    """An hour of traffic: answers of 100 tokens end at their rate, steps go on at theirs."""
    budget, now_s, ended = ScoreBudget(RULES), 0.0, 0
    while now_s < 3600.0:
        now_s += 1.0 / steps_s
        budget.stepped(now_s, drafted=True, scored=False)
        while ended * 100 < tokens_s * now_s:
            ended += 1
            budget.emitted_tokens += 100
            if budget.takes(100, steps=steps_each):
                budget.scored_tokens += 100
                for _ in range(steps_each):
                    budget.stepped(now_s, drafted=False, scored=True)
    assert budget.score_steps <= 0.01 * budget.steps
    assert budget.scored_tokens >= max(0.001 * budget.emitted_tokens, 200 * 60)


def test_the_bound_on_steps_comes_first_where_steps_are_few() -> None:
    """A step a second, and each score takes one."""
    budget = ScoreBudget(RULES)
    for now_s in range(3600):
        budget.stepped(float(now_s), drafted=True, scored=False)
        budget.emitted_tokens += 100
        if budget.takes(50, steps=1):
            budget.scored_tokens += 50
            budget.stepped(float(now_s), drafted=False, scored=True)
    assert 0.009 * budget.steps <= budget.score_steps <= 0.01 * budget.steps
    assert budget.scored_tokens < 200 * 60


def test_a_pause_is_no_traffic() -> None:
    budget = ScoreBudget(RULES)
    for now_s in (0.0, 0.5, 3600.0, 3600.5):
        budget.stepped(now_s, drafted=True, scored=False)
    budget.stepped(3601.0, drafted=False, scored=False)
    assert budget.busy_s == 1.0


@pytest.mark.parametrize(
    ("drafts", "accepted", "state"),
    [(1999, 1999, "usual"), (2000, 2000, "high"), (2000, 0, "low"), (4000, 2400, "usual"), (0, 0, "usual")],
)
def test_acceptance_is_absurd_at_both_ends_once_there_is_enough_of_it(drafts: int, accepted: int, state: str) -> None:
    assert acceptance_state(drafts, accepted, RULES) == state


RECORDED = json.loads((Path(__file__).parent / "recorded_margins.json").read_text())
RESAMPLES, STREAM_TOKENS = 60, 20_000_000


def answers(run: str) -> np.ndarray:
    """Margins of the answers of a run, [answers, tokens]; those that are not listed are 0."""
    found = np.zeros(RECORDED[run]["tokens"])
    for place, nats in RECORDED[run]["margins"].items():
        found[int(place)] = nats
    return found.reshape(-1, RECORDED["answer_tokens"])


def alarms(far: np.ndarray, tokens: int, rules: CanaryRules) -> list[int]:
    """At which of so many tokens the test alarms, when those at `far` are far; after an alarm it begins anew."""
    level, last, found = 0.0, -1, []
    test = WrongTokenTest(rules)
    up, down = test.levels(np.array([9.0, 0.0]))
    for place in far.tolist():
        level = max(0.0, level + (down - up) * (place - last - 1)) + up
        last = place
        if level >= rules.alarm_level:
            found.append(place)
            level = 0.0
    return found


def drawn(blocks: np.ndarray, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """The places of far tokens among `tokens` of answers drawn from `blocks`."""
    size = blocks.shape[1]
    order = rng.integers(len(blocks), size=tokens // size)
    far = blocks >= RULES.far_nats
    starts = np.flatnonzero(far.any(axis=1)[order])
    return np.concatenate([start * size + np.flatnonzero(far[order[start]]) for start in starts.tolist()] or [[]])


def noise_of(blocks: np.ndarray) -> float:
    """What docs/canary.md says to set: the share of far tokens and a half more, within the setting's bounds."""
    return min(0.003, max(RULES.noise_frac, 1.5 * float((blocks >= RULES.far_nats).mean())))


def test_alarms_of_places_are_those_of_the_product_s_test() -> None:
    rng = np.random.default_rng(4)
    found = np.where(rng.random(300_000) < 0.004, 1.0, 0.0)
    reached = WrongTokenTest(RULES).levels(found) >= RULES.alarm_level
    assert alarms(np.flatnonzero(found), len(found), RULES)[0] == reached.argmax()


@pytest.mark.parametrize("run", [name for name in RECORDED if name.endswith("sound")])
def test_a_sound_engine_is_not_alarmed_of_within_a_million_tokens(run: str) -> None:
    """Noise is set from one half, the mean run to an alarm is of the other: 95% lower end, bootstrap of answers."""
    rng, found = np.random.default_rng(5), answers(run)
    for chosen_on, half in ((found[::2], found[1::2]), (found[1::2], found[::2])):
        rules = CanaryRules(noise_frac=noise_of(chosen_on))
        runs = []
        for _ in range(RESAMPLES if (half >= RULES.far_nats).any() else 1):
            blocks = half[rng.integers(len(half), size=len(half))]
            count = len(alarms(drawn(blocks, STREAM_TOKENS, rng), STREAM_TOKENS, rules))
            runs.append(STREAM_TOKENS / max(1, count))
        assert np.quantile(runs, 0.05) >= 1e6


@pytest.mark.parametrize("noise_frac", [RULES.noise_frac, 0.0017])
def test_one_wrong_token_in_200_of_an_engine_is_found_within_2000(noise_frac: float) -> None:
    """Tokens that a planted accept rule took in bf16, at least 0.5 nats behind the target's best when verified."""
    rng, found = np.random.default_rng(6), answers("tiny bfloat16 wrong")
    rules = CanaryRules(noise_frac=noise_frac)
    lengths = [alarms(drawn(found, 50_000, rng), 50_000, rules)[0] for _ in range(200)]
    assert np.median(lengths) <= 2000


def test_wrong_tokens_among_the_noise_of_a_dense_model_are_found_within_2000() -> None:
    """Each wrong token is as far as it was for the verify pass, 0.5 nats, less the largest noise that is usual."""
    rng, found = np.random.default_rng(6), answers("demo bfloat16 sound")
    lengths = []
    for _ in range(100):
        margins = found[rng.integers(len(found), size=60)].ravel()
        margins[rng.random(len(margins)) < 0.005] = 0.5
        lengths.append(int((WrongTokenTest(RULES).levels(margins) >= RULES.alarm_level).argmax()) or len(margins))
    assert np.median(lengths) <= 2000
