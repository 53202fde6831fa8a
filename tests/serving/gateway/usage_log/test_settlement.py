"""Settlement: each request that broke off is settled once, with the engine's counts where the engine lived."""

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.configs.contracts.ended import EndedPage, EndedRequest
from sparktier.serving.gateway.usage_log.records import State, UsageRecord
from sparktier.serving.gateway.usage_log.settlement import GRACE_MS, Settlement, tokens_of

EPOCH, NEXT_EPOCH = 1_000, 500_000
NOW_MS = 100_000


def record(engine_id: str = "a", *, state: State = "ended", users: int = 1, replica: int = 0) -> UsageRecord:
    return UsageRecord(state, 50_000, 50_000, engine_id, "r", "acme", "gold", "/v1/completions", users, replica, 3, 5)


def entry(seq: int, engine_id: str | None = "a", *, prompt: int = 0, tokens: int = 9) -> EndedRequest:
    counts = {"prompt_tokens": 7 + prompt, "completion_tokens": tokens, "cached_tokens": 0}
    return EndedRequest(
        seq=seq,
        request_id=engine_id,
        prompt=prompt,
        finish_reason="abort",
        arrived_at_ms=50_000,
        ended_at_ms=60_000,
        **counts,
    )


def page(
    *entries: EndedRequest,
    epoch: int = EPOCH,
    kept_from: int = 1,
    last: int | None = None,
    in_flight: Sequence[str] = (),
    since_ms: int | None = None,
) -> EndedPage:
    return EndedPage(
        replica_id="replica-0",
        epoch=epoch,
        kept_from=kept_from,
        kept_since_ms=since_ms,
        last=entries[-1].seq if last is None and entries else last or 0,
        in_flight=tuple(in_flight),
        ended=entries,
    )


def told(settlement: Settlement, *pages: EndedPage, now_ms: int = NOW_MS) -> list[UsageRecord]:
    return [found for each in pages for found in settlement.told(0, each, now_ms)[0]]


def test_the_engine_s_counts_take_the_place_of_what_was_delivered() -> None:
    settlement = Settlement([record()])
    [found] = told(settlement, page(entry(1, None), entry(2)))
    assert (found.state, found.prompt_tokens, found.completion_tokens) == ("complete", 7, 9)
    assert (found.tenant, found.tier, found.at_ms) == ("acme", "gold", NOW_MS)
    assert not settlement.awaited


def test_an_engine_that_died_leaves_what_was_delivered() -> None:
    [found] = told(Settlement([record()]), page(epoch=NEXT_EPOCH))
    assert (found.state, found.prompt_tokens, found.completion_tokens) == ("incomplete", 3, 5)


def test_choices_that_ended_before_the_engine_died_make_no_whole_request() -> None:
    settlement = Settlement([record(users=2)])
    assert not told(settlement, page(entry(1), in_flight=["a"]))
    [found] = told(settlement, page(epoch=NEXT_EPOCH, last=0), page(epoch=NEXT_EPOCH, last=0))
    assert (found.state, found.completion_tokens) == ("incomplete", 5)


def test_a_request_is_settled_when_no_part_of_it_runs() -> None:
    settlement = Settlement([record(users=3)])
    assert not told(settlement, page(entry(1, tokens=0), entry(2), in_flight=["a"]))
    [found] = told(settlement, page(entry(3), entry(4)))
    assert (found.prompt_tokens, found.completion_tokens) == (7, 27)


def test_one_that_the_engine_never_had_used_nothing_once_it_can_no_longer_arrive() -> None:
    sent = record().now("open", NOW_MS)
    settlement = Settlement([sent])
    assert not told(settlement, page(), now_ms=NOW_MS + GRACE_MS - 1)
    [found] = told(settlement, page(), now_ms=NOW_MS + GRACE_MS)
    assert (found.state, found.prompt_tokens, found.completion_tokens) == ("complete", 0, 0)


@pytest.mark.parametrize(
    ("users", "seen", "state"), [(1, False, "incomplete"), (1, True, "complete"), (2, True, "incomplete")]
)
def test_what_the_replica_has_forgotten_is_not_taken_for_nothing(users: int, seen: bool, state: str) -> None:
    entries = [entry(20, "a" if seen else "b")]
    [found] = told(Settlement([record(users=users)]), page(*entries, kept_from=20, since_ms=60_000))
    assert found.state == state


def test_requests_that_go_on_and_those_of_other_replicas_are_left_alone() -> None:
    settlement = Settlement([record("elsewhere", replica=1)])
    settlement.note(record(state="open"))
    assert settlement.awaited == {1}
    assert not told(settlement, page(entry(1), entry(2, "elsewhere")))
    settlement.note(record())
    # Its end was told before the client hung up, and isn't told again.
    [found] = told(settlement, page(last=2))
    assert (found.engine_id, found.completion_tokens) == ("a", 9)


def test_one_that_was_complete_is_not_settled_again() -> None:
    settlement = Settlement()
    settlement.note(record(state="open"))
    settlement.note(record(state="complete"))
    assert not told(settlement, page(entry(1)))
    assert not settlement.given_up(10**9, patience_ms=1)


def test_a_new_process_is_asked_from_its_start() -> None:
    settlement = Settlement([record()])
    told(settlement, page(entry(1, "b"), in_flight=["a"]))
    assert settlement.after(0) == 1
    assert settlement.told(0, page(epoch=NEXT_EPOCH, last=5), NOW_MS) == ([], True)
    assert settlement.after(0) == 0


def test_a_replica_that_never_comes_back_is_given_up() -> None:
    settlement = Settlement([record()])
    assert not settlement.given_up(51_000, patience_ms=1_000)
    [found] = settlement.given_up(51_001, patience_ms=1_000)
    assert (found.state, found.completion_tokens) == ("incomplete", 5)
    assert not settlement.awaited


def test_a_prompt_counts_once_whatever_its_choices() -> None:
    entries = [entry(1, tokens=0), entry(2), entry(3), entry(4, prompt=1, tokens=0), entry(5, prompt=1)]
    assert tokens_of(entries) == (7 + 8, 27)


Events = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9)), max_size=24)


@given(Events, st.sets(st.sampled_from("abcd")), st.integers(1, 4))
def test_every_request_is_settled_once_with_all_that_the_engine_counted(
    events: list[tuple[str, int]], broken_off: set[str], page_size: int
) -> None:
    """Whatever the pages, and whatever ends before the gateway knows that it needs the engine's word."""
    settlement = Settlement()
    for engine_id in "abcd":
        settlement.note(record(engine_id, state="open", users=8))
    entries = [entry(seq, engine_id, tokens=tokens) for seq, (engine_id, tokens) in enumerate(events, start=1)]
    half = len(entries) // 2
    settled: list[UsageRecord] = []
    for count, over in ((half, broken_off), (len(entries), set("abcd"))):
        for engine_id in sorted(over - {found.engine_id for found in settled}):
            settlement.note(record(engine_id, users=8))
        in_flight = {each.request_id for each in entries[count:] if each.request_id}
        another = True
        while another:
            after = settlement.after(0)
            shown = entries[:count][after : after + page_size]
            found, another = settlement.told(0, page(*shown, last=count, in_flight=sorted(in_flight)), NOW_MS)
            settled += found
    assert sorted(found.engine_id for found in settled) == list("abcd")
    for found in settled:
        mine = [each for each in entries if each.request_id == found.engine_id]
        assert (found.prompt_tokens, found.completion_tokens) == tokens_of(mine)
        assert found.state == "complete"


def test_records_of_a_request_differ_in_nothing_else() -> None:
    before = record()
    after = before.now("complete", NOW_MS, prompt_tokens=1)
    assert dataclasses.asdict(after) == dataclasses.asdict(before) | {
        "state": "complete",
        "at_ms": NOW_MS,
        "prompt_tokens": 1,
    }
