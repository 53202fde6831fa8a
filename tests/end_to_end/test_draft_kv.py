"""In mid-run, target and draft hold what a fresh prefill of the same tokens gives. Exact tokens can't show this: with a
hole in its context a draft only guesses worse."""

from pathlib import Path

import pytest

from support.probes.kv_probe import WHOLE, Pairs, read_pairs
from support.probes.run_ranks import run_ranks

pytestmark = pytest.mark.engine
# Keys, values and logits are of order one to ten in float32, summed in another order by each pass.
TOLERANCE = 1e-4
KV_HEADS = 2  # of the tiny model


@pytest.fixture(scope="module")
def runs(predictable: Path, bigrams: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pairs]:
    """Snapshots of one rank alone: of a whole run, and of one without each part that a mistake could leave out."""
    folder = tmp_path_factory.mktemp("draft-kv") / "pairs"
    [found] = probed(predictable, bigrams, folder, "injection", "compaction", "flush")
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


@pytest.mark.parametrize("broken", ["injection", "flush"])
def test_rows_that_were_not_injected_are_seen(runs: dict[str, Pairs], broken: str) -> None:
    pairs = runs[broken]
    assert furthest(pairs, "target") < TOLERANCE
    assert furthest(pairs, "draft") > 100 * TOLERANCE
    assert furthest(same_anchor(pairs), "logits") > 100 * TOLERANCE


def test_accepted_rows_left_where_they_were_verified_are_seen(runs: dict[str, Pairs]) -> None:
    assert furthest(runs["compaction"], "target") > 100 * TOLERANCE
