"""Offered load: rates and bursts are what was asked for, one seed gives one load, and shares are kept."""

import numpy as np
import pytest

from sparktier.cluster.traffic.arrivals import Share, arrivals
from sparktier.cluster.traffic.generated import Burst, Length, generated
from sparktier.cluster.traffic.requests import Requests, scaled, superposed, window

HOUR_MS = 3_600_000.0
LENGTHS = (Length(100, 50), Length(1000, 200))
SHARES = (Share("acme", 1, 1.0), Share("beta", 1, 1.0), Share("beta", 0, 2.0))


def chats(n: int = 6) -> Requests:
    """A small trace in which requests 0 and 3 are one session with one prefix."""
    return Requests(
        at_ms=np.arange(n) * 1000.0,
        prompt_tokens=np.arange(n) + 10,
        output_tokens=np.arange(n) + 1,
        session=np.array([0, 1, 2, 0, 3, 4])[:n],
        prefixes=[(0, 1), (), (), (0, 1, 2), (), ()][:n],
        span_ms=n * 1000.0,
    )


def test_a_rate_gives_a_poisson_process() -> None:
    load = generated(5.0, span_ms=HOUR_MS, lengths=LENGTHS, seed=1)
    gaps = np.diff(load.at_ms)
    assert load.rate_s == pytest.approx(5.0, rel=4 / np.sqrt(18_000))
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(1.0, abs=0.05)
    assert load.at_ms.min() >= 0
    assert load.at_ms.max() < HOUR_MS
    assert (np.diff(load.at_ms) >= 0).all()


@pytest.mark.parametrize("burstiness", [0.0, 0.5, 2.0])
def test_burstiness_is_the_variation_of_gaps(burstiness: float) -> None:
    gaps = np.diff(generated(5.0, span_ms=HOUR_MS, lengths=LENGTHS, seed=1, burstiness=burstiness).at_ms)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(burstiness, abs=0.1)


def test_a_burst_has_its_own_rate() -> None:
    bursts = (Burst(HOUR_MS / 4, HOUR_MS / 4, 3.0), Burst(HOUR_MS / 2, HOUR_MS / 4, 0.0))
    load = generated(5.0, span_ms=HOUR_MS, lengths=LENGTHS, seed=1, bursts=bursts)
    counts = np.histogram(load.at_ms, bins=4, range=(0, HOUR_MS))[0] / (HOUR_MS / 4000)
    assert counts.tolist() == pytest.approx([5.0, 15.0, 0.0, 5.0], rel=0.08)


def test_lengths_don_t_move_times() -> None:
    one = generated(5.0, span_ms=HOUR_MS, lengths=LENGTHS, seed=1)
    other = generated(5.0, span_ms=HOUR_MS, lengths=LENGTHS[:1], seed=1)
    assert (one.at_ms == other.at_ms).all()
    assert set(one.prompt_tokens.tolist()) == {100, 1000}


def test_scaling_keeps_the_shape() -> None:
    faster = scaled(chats(), 4.0)
    assert faster.rate_s == pytest.approx(4 * chats().rate_s)
    assert faster.at_ms.tolist() == [0.0, 250.0, 500.0, 750.0, 1000.0, 1250.0]


def test_a_window_begins_at_0() -> None:
    part = window(chats(), start_ms=1500.0, span_ms=3000.0)
    assert part.at_ms.tolist() == [500.0, 1500.0, 2500.0]
    assert part.prompt_tokens.tolist() == [12, 13, 14]
    assert part.span_ms == 3000.0
    assert len(window(chats(), start_ms=99_000.0)) == 0


def test_copies_are_other_users_at_other_times() -> None:
    load = superposed(chats(), 3, seed=1)
    assert len(load) == 18
    assert load.rate_s == pytest.approx(3 * chats().rate_s)
    assert (np.diff(load.at_ms) >= 0).all()
    assert load.at_ms.max() < load.span_ms
    assert sorted(load.prompt_tokens.tolist()) == sorted(chats().prompt_tokens.tolist() * 3)
    assert len(set(load.session.tolist())) == 15
    owners = [
        {s for s, ids in zip(load.session.tolist(), load.prefixes, strict=True) if block in ids} for block in range(9)
    ]
    assert all(len(sessions) == 1 for sessions in owners)
    # The first copy is the trace itself.
    assert set(chats().at_ms) <= set(load.at_ms)


def test_one_seed_gives_one_load() -> None:
    def load(seed: int) -> list[object]:
        drawn = generated(5.0, span_ms=60_000.0, lengths=LENGTHS, seed=seed)
        return [*arrivals(superposed(drawn, 2, seed=seed), SHARES, seed=seed)]

    assert load(1) == load(1)
    assert load(1) != load(2)


def test_tenants_and_tiers_have_their_shares() -> None:
    load = arrivals(generated(5.0, span_ms=HOUR_MS, lengths=LENGTHS, seed=1), SHARES, seed=1)
    counts = [sum((each.tenant, each.tier) == share[:2] for each in load) / len(load) for share in SHARES]
    assert counts == pytest.approx([0.25, 0.25, 0.5], abs=0.02)


def test_other_shares_leave_times_and_lengths() -> None:
    drawn = generated(5.0, span_ms=60_000.0, lengths=LENGTHS, seed=1)
    one, other = (arrivals(drawn, shares, seed=1) for shares in (SHARES, SHARES[:1]))
    assert [each.at_ms for each in one] == [each.at_ms for each in other]
    assert [each[3:] for each in one] == [each[3:] for each in other]


@pytest.mark.parametrize("seed", range(8))
def test_a_session_keeps_its_tenant_and_tier(seed: int) -> None:
    load = arrivals(chats(), SHARES, seed=seed)
    assert load[0][1:3] == load[3][1:3]
    assert (load[3].prefix, load[3].prompt_tokens, load[3].at_ms) == ((0, 1, 2), 13, 3000.0)


def test_an_empty_load_is_no_error() -> None:
    empty = window(chats(), start_ms=99_000.0)
    assert arrivals(superposed(empty, 3, seed=1), SHARES, seed=1) == []
