"""A target without any drafter: chains of its own contexts, over two ranks, change no token."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.oracles.greedy_distribution import GreedyDistribution, Penalty
from support.probes.alone_probe import SAMPLING, TOKENS, prompts
from support.probes.run_ranks import run_ranks
from support.tiny_moe import make_tiny_moe

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def predictable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a checkpoint whose tokens mostly follow from the last one."""
    return make_tiny_moe(tmp_path_factory.mktemp("predictable") / "target", context_gain=0.2)


@pytest.fixture(scope="module")
def ranks(predictable: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks said and counted."""
    out = tmp_path_factory.mktemp("alone")
    run_ranks("alone_probe", [predictable], out=out, ranks=2, timeout_s=540)
    return [json.loads((out / str(rank)).read_text()) for rank in range(2)]


def test_every_rung_says_what_decoding_without_drafts_says(ranks: list[dict[str, Any]]) -> None:
    """Sampled and penalised requests too, in slots of requests that were ended."""
    for arms in (rank["arms"] for rank in ranks):
        assert {len(tokens) for tokens in arms["off"]["tokens"]} == {TOKENS}
        for arm in ("chain", "short", "mixed"):
            assert arms[arm]["tokens"] == arms["off"]["tokens"], arm
        # Proof that accepted and rejected drafts were there.
        assert arms["chain"]["length"] >= arms["short"]["length"] > 1.02
        assert arms["off"]["length"] == 1.0


def test_greedy_tokens_are_the_model_s_own(ranks: list[dict[str, Any]], predictable: Path) -> None:
    whole = GreedyDistribution(predictable)
    greedy = [number for number in range(len(prompts())) if not SAMPLING[number % len(SAMPLING)]]
    for number in greedy:
        tokens = ranks[0]["arms"]["chain"]["tokens"][number]
        assert not whole.wrong(prompts()[number], tokens, Penalty())


def test_ranks_count_the_same(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["counts"] == ranks[1]["counts"]
    tried, right = map(sum, zip(*ranks[0]["counts"][:-1], strict=True))
    assert 0 < right < tried
