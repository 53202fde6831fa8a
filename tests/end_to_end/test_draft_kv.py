"""In mid-run, target and draft hold what a fresh prefill of the same tokens gives. Exact tokens can't show this: with a
hole in its context a draft only guesses worse."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.probes.kv_probe import AS_ON_GPU, WHOLE, Pairs, read_pairs
from support.probes.run_ranks import run_ranks

pytestmark = pytest.mark.engine
# Keys, values and logits are of order one to ten in float32, summed in another order by each pass.
TOLERANCE = 1e-4
KV_HEADS = 2  # of the tiny model


@pytest.fixture(scope="module")
def folder(predictable: Path, bigrams: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one rank alone left what it held, and what its canary found, whole and without each of its parts."""
    folder = tmp_path_factory.mktemp("draft-kv") / "pairs"
    probed(predictable, bigrams, folder, AS_ON_GPU, "injection", "compaction", "flush")
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Pairs]:
    """Snapshots of one rank alone: of a whole run, and of one without each part that a mistake could leave out."""
    return read_pairs(folder / "0")


@pytest.fixture(scope="module")
def canary(folder: Path) -> dict[str, Any]:
    """What the canary of that rank found, whole and with accepted rows left where they were verified."""
    found: dict[str, Any] = json.loads((folder / "0.canary.json").read_text())
    return found


def probed(model: Path, draft: Path, out: Path, *broken: str, ranks: int = 1) -> list[dict[str, Pairs]]:
    """Snapshots in mid-run, each with that of a fresh prefill, by run; for each rank."""
    out.mkdir()
    run_ranks("kv_probe", [model, draft], broken, out=out, ranks=ranks, timeout_s=540)
    of_ranks = [read_pairs(out / str(rank)) for rank in range(ranks)]
    assert all(len(pairs) > 20 for found in of_ranks for pairs in found.values())
    return of_ranks


def furthest(pairs: Pairs, what: str) -> float:
    """The largest difference between what was held in mid-run and afresh."""
    return max(float((getattr(mid, what) - getattr(new, what)).abs().max()) for mid, new in pairs)


def same_anchor(pairs: Pairs) -> Pairs:
    """Those pairs whose next draft block starts from the same token: a fresh prefill draws its own."""
    return [(mid, new) for mid, new in pairs if mid.anchor == new.anchor]


def texts(pairs: Pairs) -> dict[str, tuple[int, ...]]:
    """The longest text of each request in mid-run."""
    found: dict[str, tuple[int, ...]] = {}
    for mid, _ in pairs:
        found[mid.request] = max(found.get(mid.request, ()), (*mid.tokens, mid.anchor), key=len)
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_mid_run_is_like_a_fresh_prefill(
    runs: dict[str, Pairs], predictable: Path, bigrams: Path, tmp_path: Path, ranks: int
) -> None:
    found = [runs] if ranks == 1 else probed(predictable, bigrams, tmp_path / "pairs", ranks=ranks)
    for pairs in (of_rank[WHOLE] for of_rank in found):
        assert all(mid.tokens == new.tokens for mid, new in pairs)
        assert any(mid.request.startswith("next-") for mid, _ in pairs)
        assert max(len(mid.tokens) for mid, _ in pairs) > 128, "some prompts take several chunks"
        for what in ("target", "draft"):
            assert furthest(pairs, what) < TOLERANCE, what
        assert len(same_anchor(pairs)) > len(pairs) / 2
        assert furthest(same_anchor(pairs), "logits") < TOLERANCE
    heads = {of_rank[WHOLE][0][0].target.shape[3] * ranks for of_rank in found}
    assert heads == {KV_HEADS}, "each rank holds its share"


def test_a_rank_that_steps_as_on_a_gpu_says_and_holds_the_same(runs: dict[str, Pairs]) -> None:
    """Rows that were known before the draft ran, padding among them, and what a draft's graph proposed."""
    pairs = runs[AS_ON_GPU]
    for what in ("target", "draft"):
        assert furthest(pairs, what) < TOLERANCE, what
    assert furthest(same_anchor(pairs), "logits") < TOLERANCE
    said, said_whole = texts(pairs), texts(runs[WHOLE])
    assert set(said) == set(said_whole)
    for request, tokens in said.items():
        both = min(len(tokens), len(said_whole[request]))
        assert tokens[:both] == said_whole[request][:both], request


@pytest.mark.parametrize("broken", ["injection", "flush"])
def test_rows_that_were_not_injected_are_seen(runs: dict[str, Pairs], broken: str) -> None:
    pairs = runs[broken]
    assert furthest(pairs, "target") < TOLERANCE
    assert furthest(pairs, "draft") > 100 * TOLERANCE
    assert furthest(same_anchor(pairs), "logits") > 100 * TOLERANCE


def test_accepted_rows_left_where_they_were_verified_are_seen(runs: dict[str, Pairs]) -> None:
    assert furthest(runs["compaction"], "target") > 100 * TOLERANCE


def test_the_canary_finds_kv_that_was_left_where_it_was_verified_and_nothing_else(canary: dict[str, Any]) -> None:
    whole, fault = canary["whole"], canary["fault"]
    assert whole["scored_tokens"] >= 1000
    assert (whole["state"], whole["far_tokens"], whole["alarms"]) == ("watching", 0, 0)
    assert (fault["state"], fault["alarms"]) == ("alarmed", 1)
    assert fault["scored_tokens"] - whole["scored_tokens"] <= 2000


def test_an_alarm_latches_by_the_end_of_the_second_step_and_new_plans_end_nothing(canary: dict[str, Any]) -> None:
    rungs = canary["rungs_from_alarm"]
    assert len(rungs) > 5
    assert set(rungs[2:]) == {0}, rungs
    assert canary["rung_under_new_plans"] == 0
    assert canary["rung_after_resume"] == 3
