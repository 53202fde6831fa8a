"""Which replica gets the next request."""

from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from sparktier.serving.clients.rank_facts import EngineLimits
from sparktier.serving.gateway.replica_life import ReplicaLife, State
from sparktier.serving.gateway.routing import Replica, ReplicaTable, RequestInFlight

REPLICAS = st.lists(st.tuples(st.sampled_from(State), st.integers(0, 3)), min_size=1, max_size=6)


@given(REPLICAS)
def test_the_least_loaded_of_those_that_serve(states: list[tuple[State, int]]) -> None:
    replicas = tuple(Replica(n, life=ReplicaLife(state), in_flight=load) for n, (state, load) in enumerate(states))
    picked = ReplicaTable(replicas).pick()
    serving = [replica for replica in replicas if replica.state is State.SERVING]
    if picked is None:
        assert serving == []
        return
    assert picked in serving
    assert all(picked.in_flight <= replica.in_flight for replica in serving)
    assert all(replica.in_flight > picked.in_flight for replica in serving[: serving.index(picked)])


def test_requests_in_flight_are_counted_until_they_end() -> None:
    one, two = Replica(0, life=ReplicaLife(State.SERVING)), Replica(1, life=ReplicaLife(State.SERVING))
    with closing(RequestInFlight(one)), closing(RequestInFlight(one)) as moved:
        assert one.in_flight == 2
        moved.move_to(two)
        assert (one.in_flight, two.in_flight) == (1, 1)
    assert (one.in_flight, two.in_flight) == (0, 0)


def test_starts_are_given_up_when_every_replica_has_failed_so_often_and_none_has_served() -> None:
    table = ReplicaTable((Replica(0, failed_starts=2), Replica(1, failed_starts=5)))
    assert table.never_started(2)
    assert not table.never_started(3)
    table.replicas[0].limits = EngineLimits(512, 256, 12)
    assert not table.never_started(2)


def test_a_deployment_has_served_once_any_replica_has() -> None:
    table = ReplicaTable((Replica(0), Replica(1)))
    assert not table.ever_served
    table.replicas[1].limits = EngineLimits(512, 256, 12)
    assert table.ever_served
