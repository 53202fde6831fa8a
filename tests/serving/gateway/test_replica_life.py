"""A replica's life as a table: every state meets every event, and leads on or refuses."""

import itertools

import pytest

from sparktier.serving.gateway.replica_life import TRANSITIONS, Event, IllegalTransition, ReplicaLife, State

# One row a state, one column an event; a dot is an illegal transition.
TABLE = """
            start     ready    fail  drain     drained
off         starting  .        .     .         .
starting    .         serving  down  off       .
serving     .         .        down  draining  .
draining    .         .        off   .         off
down        starting  .        .     off       .
"""
_HEAD, *_ROWS = (line.split() for line in TABLE.strip().splitlines())
CASES = [(row[0], event, follows) for row in _ROWS for event, follows in zip(_HEAD, row[1:], strict=True)]


def test_the_table_has_every_state_and_every_event() -> None:
    assert {(state, event) for state, event, _ in CASES} == set(itertools.product(State, Event))
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize(("state", "event", "follows"), CASES, ids=[f"{state} {event}" for state, event, _ in CASES])
def test_each_state_meets_each_event(state: str, event: str, follows: str) -> None:
    life = ReplicaLife(State(state))
    if follows == ".":
        with pytest.raises(IllegalTransition, match=f"{state} must meet one of .* \\(found {event}\\)"):
            life.happened(Event(event))
        assert life.state == state
    else:
        life.happened(Event(event))
        assert life.state == follows


def test_a_replica_begins_off_and_every_state_can_be_reached_and_left() -> None:
    reached = {ReplicaLife().state}
    while following := {after for state in reached for after in TRANSITIONS[state].values()} - reached:
        reached |= following
    assert reached == set(State)
    assert all(TRANSITIONS.values())


@pytest.mark.parametrize(
    ("state", "takes_requests", "has_ready_engine"),
    [
        (State.OFF, False, False),
        (State.STARTING, False, False),
        (State.SERVING, True, True),
        (State.DRAINING, False, True),
        (State.DOWN, False, False),
    ],
)
def test_a_draining_replica_gets_no_new_requests_and_finishes_those_it_has(
    state: State, takes_requests: bool, has_ready_engine: bool
) -> None:
    assert (state.takes_requests, state.has_ready_engine) == (takes_requests, has_ready_engine)
