"""The account of a tenant: users, requests and tokens are taken together or not at all, and come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.configs.settings.tenants import TenantLimits
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.tenants.allowance import Allowance, Load, Permit

ACTIONS = st.lists(st.tuples(st.sampled_from(["admit", "settle", "close"]), st.integers(0, 9), st.integers(1, 6)))


def admitted(account: Allowance, limits: TenantLimits, users: int = 1, tokens: int = 0, now_s: float = 0.0) -> Permit:
    return account.admit(Load(users, tokens), limits, now_s=now_s)


def refusal(account: Allowance, limits: TenantLimits, users: int = 1, tokens: int = 0, now_s: float = 0.0) -> Refused:
    with pytest.raises(Refused) as caught:
        admitted(account, limits, users, tokens, now_s)
    return caught.value


@given(actions=ACTIONS)
def test_users_in_flight_are_those_of_open_permits(actions: list[tuple[str, int, int]]) -> None:
    account, limits, permits = Allowance(), TenantLimits(users_at_once=8), list[tuple[Permit, int]]()
    open_users = 0
    for action, which, users in actions:
        if action == "admit":
            try:
                permits.append((admitted(account, limits, users), users))
                open_users += users
            except Refused:
                assert open_users + users > 8
        elif permits and action == "close":
            permit, held = permits.pop(which % len(permits))
            permit.close()
            permit.close()
            open_users -= held
        assert account.users == open_users <= 8


def test_without_limits_everything_is_admitted() -> None:
    account = Allowance()
    permits = [admitted(account, TenantLimits(), users=100, tokens=10**9) for _ in range(100)]
    assert account.users == 10_000
    assert not permits[0].counts_tokens


def test_a_request_that_never_fits_is_refused_for_good_and_others_are_told_when_to_come() -> None:
    account, limits = Allowance(), TenantLimits(users_at_once=4)
    never = refusal(account, limits, users=5)
    assert (never.status, never.param, never.retry_after_s) == (400, "n", None)
    admitted(account, limits, users=3)
    later = refusal(account, limits, users=2)
    assert (later.status, later.code, later.retry_after_s) == (429, "rate_limit_exceeded", 1)


def test_requests_of_a_minute_are_bounded() -> None:
    account, limits = Allowance(), TenantLimits(requests_per_min=2)
    for _ in range(2):
        admitted(account, limits).close()
    error = refusal(account, limits, now_s=10.0)
    assert (error.status, error.code, error.retry_after_s) == (429, "rate_limit_exceeded", 20)
    admitted(account, limits, now_s=30.0)


def test_what_is_refused_takes_nothing() -> None:
    account, limits = Allowance(), TenantLimits(users_at_once=9, requests_per_min=2, tokens_per_min=100)
    admitted(account, limits, tokens=60)
    for _ in range(5):
        assert refusal(account, limits, tokens=60).retry_after_s == 12
    admitted(account, limits, tokens=40)
    assert account.users == 2


def test_tokens_are_settled_on_what_they_were_once() -> None:
    account, limits = Allowance(), TenantLimits(tokens_per_min=60)
    permit = admitted(account, limits, tokens=60)
    assert permit.counts_tokens
    assert refusal(account, limits, tokens=1).retry_after_s == 1
    permit.settle(20, now_s=0.0)
    permit.settle(0, now_s=0.0)
    admitted(account, limits, tokens=40)
    assert refusal(account, limits, tokens=10).retry_after_s == 10


def test_an_answer_longer_than_expected_is_paid_for_later() -> None:
    account, limits = Allowance(), TenantLimits(tokens_per_min=60)
    admitted(account, limits, tokens=10).settle(180, now_s=0.0)
    assert refusal(account, limits, tokens=10).retry_after_s == 130


def test_new_limits_hold_at_once_and_forget_nothing() -> None:
    account = Allowance()
    admitted(account, TenantLimits(users_at_once=4, requests_per_min=1), users=4)
    assert refusal(account, TenantLimits(users_at_once=5, requests_per_min=1)).retry_after_s == 60
    assert refusal(account, TenantLimits(users_at_once=4)).retry_after_s == 1
    admitted(account, TenantLimits(users_at_once=5))
