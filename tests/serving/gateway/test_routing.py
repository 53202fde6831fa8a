"""Which replicas take requests, and when a deployment has never served."""

from sparktier.serving.clients.rank_facts import EngineLimits
from sparktier.serving.gateway.replica_life import ReplicaLife, State
from sparktier.serving.gateway.routing import Replica, ReplicaTable


def test_only_those_that_serve_take_requests() -> None:
    replicas = tuple(Replica(number, life=ReplicaLife(state)) for number, state in enumerate(State))
    assert [replica.state for replica in ReplicaTable(replicas).serving] == [State.SERVING]


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
