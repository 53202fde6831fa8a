"""The smallest cluster: found whatever the sizes attain, and never smaller for more traffic or higher promises."""

from hypothesis import given
from hypothesis import strategies as st

from sparktier.cluster.capacity import NONE, Sizes, binding, cost_per_million, smallest

RISING = st.lists(st.floats(0, 1), min_size=1, max_size=40).map(sorted)


def sizes_of(attained: list[float], wanted: float) -> Sizes:
    return Sizes(lambda replicas: {"fast": attained[replicas - 1], "flex": 1.0}, wanted)


@given(RISING, st.floats(0.01, 1), st.integers(1, 40))
def test_the_smallest_size_is_good_and_one_less_is_not(attained: list[float], wanted: float, guess: int) -> None:
    found = smallest(sizes_of(attained, wanted), most=len(attained), guess=guess)
    good = [place for place, frac in enumerate(attained, start=1) if frac >= wanted]
    assert found == (good[0] if good else None)


@given(RISING, st.floats(0.01, 1), st.floats(0, 1))
def test_it_never_falls_with_what_is_asked(attained: list[float], wanted: float, less: float) -> None:
    """More traffic or a higher promise is a cluster that attains less at every size."""
    worse = [frac * less for frac in attained]
    before, after = (smallest(sizes_of(of, wanted), most=len(attained)) for of in (attained, worse))
    assert after is None or (before is not None and before <= after)


def test_what_helps_most_binds() -> None:
    relaxed = {
        "KV tokens": lambda: {"fast": 0.7, "flex": 1.0},
        "promise of fast": lambda: {"fast": 0.995, "flex": 0.99},
    }
    assert binding(relaxed) == ("promise of fast", {"KV tokens": 0.7, "promise of fast": 0.99})
    assert binding({}) == (NONE, {})


def test_tokens_cost_what_replicas_do() -> None:
    assert cost_per_million(2, 3.6, 1000.0) == 2.0
    assert cost_per_million(2, 3.6, 0.0) is None
