"""Whether a replica is healthy, by its failures and by its tokens."""

from sparktier.cluster.admission.progress import FAILURES, FIRST_PAUSE_S, LEAST_S, LONGEST_PAUSE_S, STEPS, Progress


def test_a_replica_that_fails_again_and_again_gets_nothing_for_a_while() -> None:
    found, now_s = Progress(), 100.0
    for _ in range(FAILURES):
        assert found.healthy(now_s)
        found.failed(now_s)
    assert not found.healthy(now_s)
    assert found.healthy(now_s + FIRST_PAUSE_S)
    for _ in range(20):
        found.failed(now_s)
    assert not found.healthy(now_s + LONGEST_PAUSE_S - 1)
    assert found.healthy(now_s + LONGEST_PAUSE_S)
    found.succeeded(now_s)
    assert (found.failures, found.healthy(now_s)) == (0, True)


def test_a_replica_hangs_when_tokens_are_overdue() -> None:
    found = Progress()
    found.sent(1000, 0.0)
    longest_s = LEAST_S + 1000 * found.prefill_s_per_token
    assert not found.hangs(longest_s)
    assert found.hangs(longest_s + 1)
    # Any stream's token shows that it runs.
    found.token(since_s=1.0, now_s=longest_s)
    assert not found.hangs(longest_s + 1)


def test_slow_steps_are_no_hang() -> None:
    found = Progress()
    found.sent(1, 0.0)
    for second in range(0, 600, 3):
        found.token(since_s=3.0, now_s=float(second))
    assert not found.hangs(597 + 0.9 * STEPS * 3.0)
    assert found.hangs(597 + 1.1 * STEPS * 3.0)


def test_a_replica_without_streams_never_hangs() -> None:
    found = Progress()
    found.sent(10, 0.0)
    found.over(10, had_first=False)
    assert (found.waiting_tokens, found.hangs(1e9)) == (0, False)
    found.sent(10, 1e9)
    assert not found.hangs(1e9 + 1)
    found.first(10, took_s=0.1, now_s=1e9)
    found.over(10, had_first=True)
    assert found.waiting_tokens == 0
