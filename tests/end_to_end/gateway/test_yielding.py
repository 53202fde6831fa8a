"""A promised request takes the seat of one that yields, which goes on later and says what it would have said."""

from pathlib import Path

import pytest

from sparktier.configs.plan_keys import Rung
from support.oracles.greedy_distribution import GreedyDistribution, Penalty
from support.probes.run_ranks import run_ranks
from support.probes.yield_probe import PROMISED, SEATS, YIELDING, YieldRun, read_runs

pytestmark = [pytest.mark.engine, pytest.mark.prove]


@pytest.fixture(scope="module")
def runs(predictable: Path, bigrams: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, YieldRun]:
    out = tmp_path_factory.mktemp("yielding") / "runs"
    out.mkdir()
    run_ranks("yield_probe", [predictable, bigrams], out=out, ranks=1, timeout_s=900)
    return read_runs(out / "0")


@pytest.mark.parametrize("rung", [Rung.OFF, Rung.CHAIN, Rung.TREE])
def test_the_seats_of_those_who_yield_are_taken(runs: dict[int, YieldRun], rung: Rung) -> None:
    found = runs[rung]
    assert found.ran == SEATS
    assert {name: times for name, times in found.retractions.items() if times and name.startswith("p")} == {}
    assert sum(found.retractions.values()) >= PROMISED
    assert len(found.disturbed) == YIELDING + PROMISED


@pytest.mark.parametrize("rung", [Rung.OFF, Rung.CHAIN, Rung.TREE])
def test_every_answer_is_the_undisturbed_one(runs: dict[int, YieldRun], rung: Rung, predictable: Path) -> None:
    found, distribution = runs[rung], GreedyDistribution(predictable)
    parted = {name for name, tokens in found.disturbed.items() if tokens != found.undisturbed[name]}
    # Other neighbours in a batch add up in another order: only a tie may fall to the other side.
    wrong = {name: distribution.wrong(found.prompts[name], found.disturbed[name], Penalty()) for name in parted}
    assert not any(wrong.values()), wrong
