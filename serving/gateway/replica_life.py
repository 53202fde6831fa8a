"""A replica's life: its states, the events that change them, and the table of the transitions that are allowed."""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """What a replica is doing."""

    OFF = "off"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    DOWN = "down"

    @property
    def takes_requests(self) -> bool:
        """Whether new requests go to the replica."""
        return self is State.SERVING

    @property
    def has_ready_engine(self) -> bool:
        """Whether its engine has been ready and still runs requests."""
        return self in (State.SERVING, State.DRAINING)


class Event(StrEnum):
    """What happens to a replica."""

    START = "start"
    """Its keeper begins to start a process, or waits for the cluster to start one on."""
    READY = "ready"
    """It has answered a request."""
    FAIL = "fail"
    """Its process ended, was not ready in time, or left its probes unanswered."""
    DRAIN = "drain"
    """It is to finish what it has, and then to end."""
    DRAINED = "drained"
    """The last of its requests has ended."""


# An event that a state does not list is illegal there.
TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.OFF: {Event.START: State.STARTING},
    State.STARTING: {Event.READY: State.SERVING, Event.FAIL: State.DOWN, Event.DRAIN: State.OFF},
    State.SERVING: {Event.FAIL: State.DOWN, Event.DRAIN: State.DRAINING},
    # A replica that fails while it drains has lost what it had to finish.
    State.DRAINING: {Event.FAIL: State.OFF, Event.DRAINED: State.OFF},
    State.DOWN: {Event.START: State.STARTING, Event.DRAIN: State.OFF},
}


class IllegalTransition(RuntimeError):
    """An event in a state that does not know it: an error of the program, never of what it was given."""


class ReplicaLife:
    """The state of one replica, which events alone change."""

    def __init__(self, state: State = State.OFF) -> None:
        self._state = state

    @property
    def state(self) -> State:
        """What the replica is doing."""
        return self._state

    def happened(self, event: Event) -> None:
        """Move to the state that `event` leads to. Raises IllegalTransition where the table has none."""
        following = TRANSITIONS[self._state].get(event)
        if following is None:
            legal = ", ".join(TRANSITIONS[self._state])
            raise IllegalTransition(
                f"A replica that is {self._state} must meet one of {legal} (found {event}). Mend its caller."
            )
        self._state = following
