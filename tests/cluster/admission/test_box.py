"""The room of one replica: caps hold whatever comes and goes, and a tier that yields keeps no place."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sparktier.cluster.admission.box import Box

STANDARD, STRICT, BATCH = 0, 1, 2
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.sampled_from([STANDARD, STRICT, BATCH, 9]), st.integers(1, 3)),
        st.tuples(st.just("release"), st.integers(0, 20), st.none()),
        st.tuples(st.just("put"), st.integers(0, 5), st.integers(0, 5)),
    ),
    max_size=60,
)


@given(STEPS)
def test_no_tier_is_taken_above_its_cap(steps: list[tuple[str, Any, Any]]) -> None:
    box, held = Box({STANDARD: 4, STRICT: 2, BATCH: 1}, STANDARD, yielding={BATCH}), []
    for kind, one, other in steps:
        if kind == "take":
            before = dict(box.users)
            served = box.take(one, other)
            if served is None:
                assert box.users == before
                continue
            held.append((served, other))
            if served != BATCH:
                assert box.users[served] <= (box.caps[served] or 0)
            else:
                assert sum(box.users.values()) <= (box.seats or 0)
        elif kind == "release" and held:
            box.release(*held.pop(one % len(held)))
        elif kind == "put":
            box.put({STANDARD: one, STRICT: other, BATCH: 1}, default_tier=STANDARD, yielding={BATCH})
    for served, users in held:
        box.release(served, users)
    assert box.users == {}


def test_room_that_others_leave_idle_is_used_and_given_back() -> None:
    box = Box({STANDARD: 2, STRICT: 2, BATCH: 0}, STANDARD, yielding={BATCH})
    assert box.room == {STANDARD: 2, STRICT: 2, BATCH: 4}
    assert box.take(BATCH, 4) == BATCH
    # A promised user finds its place taken by one who yields, and is taken nevertheless.
    assert box.room == {STANDARD: 2, STRICT: 2, BATCH: 0}
    assert box.take(STRICT, 2) == STRICT
    assert box.room == {STANDARD: 2, STRICT: 0, BATCH: 0}
    assert box.take(BATCH, 1) is None


def test_a_tier_without_a_bound_is_not_told_of() -> None:
    box = Box({STANDARD: None, STRICT: 1}, STANDARD)
    assert box.take(9, 100) == STANDARD
    assert (box.room, box.bounds, box.seats) == ({STRICT: 1}, {STRICT: 1}, None)


def test_a_replica_that_is_drained_takes_nothing_and_keeps_what_it_has() -> None:
    box = Box({STANDARD: None, STRICT: 3}, STANDARD)
    assert box.take(STRICT, 2) == STRICT
    box.put(box.caps, default_tier=STANDARD, open=False)
    assert box.room == {STANDARD: 0, STRICT: 0}
    assert box.take(STANDARD, 1) is None
    assert box.users == {STRICT: 2}
