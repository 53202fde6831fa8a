"""What a gateway decides of a request without room: whose turn it is, how long, in which tier, or not at all."""

from collections import Counter
from typing import Any

import pytest

from sparktier.cluster.admission.gate import Decision, Full, Gate, Granted, Terms
from sparktier.cluster.admission.queue import Waiting
from sparktier.cluster.admission.routing import Candidate

GOLD, STANDARD, BATCH = 5, 0, 7
TERMS = {
    GOLD: Terms(ttft_s=1.0),
    STANDARD: Terms(),
    BATCH: Terms(yields=True),
}


class Fleet:
    """One replica with `free` places for each tier, of `cap`."""

    def __init__(self, free: dict[int, int | None], cap: int | None = 2) -> None:
        self.free, self.cap, self.went = free, cap, list[Waiting]()

    def __call__(self, tier: int) -> list[tuple[Candidate, int | None]]:
        return [(Candidate(0, self.free[tier], 0), self.cap)]

    def sent(self, request: Waiting, number: int) -> None:
        self.went.append(request)
        if (free := self.free[request.tier]) is not None:
            self.free[request.tier] = free - request.users


def gate(fleet: Fleet, **changes: Terms) -> Gate:
    named = {"gold": GOLD, "standard": STANDARD, "batch": BATCH}
    terms = TERMS | {named[name]: each for name, each in changes.items()}
    return Gate(lambda: terms, fleet, fleet.sent)


def asked(tier: int = GOLD, *, at_s: float = 0.0, **fields: Any) -> Waiting:
    return Waiting(tier, **{"tenant": "a", "users": 1, "tokens": 100, "arrived_s": at_s, **fields})


def kinds(decided: list[Decision]) -> list[str]:
    return [type(each).__name__ for each in decided]


def test_a_request_waits_for_room_until_its_first_token_would_be_late() -> None:
    fleet = Fleet({GOLD: 0})
    found, request = gate(fleet), asked()
    assert found.arrive(request, 0.0) == []
    assert (found.waiting, found.next_deadline_s) == ({GOLD: 1}, 1.0)
    assert found.look(0.9) == []
    assert found.look(1.0) == [Full(request, None)]
    assert found.waiting == {}


def test_room_that_comes_in_time_is_taken() -> None:
    fleet = Fleet({GOLD: 0})
    found, request = gate(fleet), asked()
    found.arrive(request, 0.0)
    fleet.free[GOLD] = 1
    assert found.look(0.5) == [Granted(request, 0)]


def test_what_the_first_token_takes_is_no_time_for_waiting() -> None:
    fleet = Fleet({GOLD: 1})
    found, first = gate(fleet), asked()
    found.arrive(first, 0.0)
    found.first_token(first, 0.4)
    found.arrive(asked(at_s=1.0), 1.0)
    assert found.next_deadline_s == pytest.approx(1.6)


def test_a_wait_is_predicted_from_how_long_places_are_held() -> None:
    fleet = Fleet({GOLD: 2, STANDARD: 0}, cap=2)
    found = gate(fleet, gold=Terms())
    for _ in range(2):
        request = asked()
        found.arrive(request, 0.0)
        found.ended(request, 10.0)
    waiting = [asked(at_s=10.0) for _ in range(3)]
    for request in waiting:
        assert found.arrive(request, 10.0) == []
    # Two places come free in ten seconds; three users wait.
    assert found.predicted_wait_s(waiting[-1]) == pytest.approx(15.0)


def test_who_would_wait_too_long_is_told_at_once_for_how_long() -> None:
    fleet = Fleet({GOLD: 1}, cap=1)
    found, first = gate(fleet), asked()
    found.arrive(first, 0.0)
    found.ended(first, 30.0)
    second = asked(at_s=30.0)
    assert found.arrive(second, 30.0) == [Full(second, 30.0)]


def test_a_tier_that_rejects_never_waits() -> None:
    request = asked()
    assert gate(Fleet({GOLD: 0}), gold=Terms(on_full="reject")).arrive(request, 0.0) == [Full(request, None)]


def test_a_downgrade_takes_the_room_of_the_other_tier_or_waits_there() -> None:
    fleet = Fleet({GOLD: 0, STANDARD: 1})
    found = gate(fleet, gold=Terms(ttft_s=1.0, on_full="downgrade", downgrade_to=STANDARD))
    first, second = asked(), asked()
    assert found.arrive(first, 0.0) == [Granted(first, 0)]
    assert (first.tier, first.asked) == (STANDARD, GOLD)
    assert found.arrive(second, 0.0) == []
    assert found.waiting == {STANDARD: 1}
    # The promise of the tier that serves counts: this one makes none.
    assert second.deadline_s == float("inf")


def test_downgrades_go_on_to_the_last_tier() -> None:
    fleet = Fleet({GOLD: 0, STANDARD: 0, BATCH: 1})
    down = Terms(on_full="downgrade", downgrade_to=BATCH)
    found = gate(fleet, gold=Terms(on_full="downgrade", downgrade_to=STANDARD), standard=down)
    request = asked()
    assert found.arrive(request, 0.0) == [Granted(request, 0)]
    assert (request.tier, fleet.free[BATCH]) == (BATCH, 0)


def test_of_equal_demand_each_tenant_gets_the_same_tokens() -> None:
    fleet = Fleet({GOLD: 0, STANDARD: 0})
    found = gate(fleet)
    for _ in range(300):
        found.arrive(asked(STANDARD, tenant="flood", tokens=400), 0.0)
    for _ in range(100):
        found.arrive(asked(STANDARD, tenant="calm", tokens=1200), 0.0)
    for _ in range(160):
        fleet.free[STANDARD] = 1
        found.look(1.0)
    tokens: Counter[str] = Counter()
    for request in fleet.went:
        tokens[request.tenant] += request.tokens
    assert abs(tokens["flood"] - tokens["calm"]) <= 2 * 1200


def test_what_found_no_room_after_all_comes_first_and_costs_its_tenant_nothing() -> None:
    fleet = Fleet({STANDARD: 1})
    found, first = gate(fleet), asked(STANDARD)
    found.arrive(first, 0.0)
    for tenant in ("a", "b"):
        assert found.arrive(asked(STANDARD, tenant=tenant), 0.0) == []
    assert found.put_back(first, 0.1) == []
    fleet.free[STANDARD] = 1
    assert found.look(0.2) == [Granted(first, 0)]


def test_a_request_of_several_users_is_not_overtaken() -> None:
    fleet = Fleet({STANDARD: 1})
    found, large, small = gate(fleet), asked(STANDARD, users=2), asked(STANDARD)
    assert found.arrive(large, 0.0) == []
    assert found.arrive(small, 0.0) == []
    fleet.free[STANDARD] = 3
    assert kinds(found.look(1.0)) == ["Granted", "Granted"]
    assert fleet.went == [large, small]


def test_who_leaves_the_queue_is_forgotten() -> None:
    fleet = Fleet({STANDARD: 0})
    found, request = gate(fleet), asked(STANDARD)
    found.arrive(request, 0.0)
    found.leave(request)
    fleet.free[STANDARD] = 5
    assert found.look(1.0) == []
