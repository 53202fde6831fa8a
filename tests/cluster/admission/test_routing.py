"""Which replica gets a request: room first, then its prompt's beginning, then the least loaded."""

from hypothesis import given
from hypothesis import strategies as st

from sparktier.cluster.admission.routing import SLACK_USERS, Candidate, PrefixMemory, choose, prefixes_of

CANDIDATES = st.lists(
    st.tuples(st.none() | st.integers(0, 4), st.integers(0, 12), st.booleans()), min_size=1, max_size=6
).map(lambda found: [Candidate(number, *each) for number, each in enumerate(found)])


@given(CANDIDATES, st.integers(1, 3), st.sets(st.integers(0, 5)), st.none() | st.integers(0, 5))
def test_a_request_goes_only_where_there_is_room(
    candidates: list[Candidate], users: int, avoid: set[int], holder: int | None
) -> None:
    found = choose(candidates, users=users, avoid=avoid, holder=holder)
    left = [each for each in candidates if each.number not in avoid] or candidates
    left = [each for each in left if each.healthy] or left
    roomy = [each for each in left if each.free is None or each.free >= users]
    if found is None:
        assert roomy == []
        return
    assert found in roomy
    least = min(each.users for each in roomy)
    assert found.users == least or (found.number == holder and found.users <= least + SLACK_USERS)


def test_of_equals_the_first_gets_it() -> None:
    found = choose([Candidate(2, None, 1), Candidate(1, None, 1), Candidate(0, None, 2)], users=1)
    assert found is not None
    assert found.number == 1


def test_the_longest_beginning_counts_and_tenants_are_apart() -> None:
    memory, text = PrefixMemory(), "a" * 5000
    memory.sent(prefixes_of("one", text), 3)
    memory.sent(prefixes_of("one", text[:300]), 5)
    assert memory.holder(prefixes_of("one", text + "b")) == 3
    assert memory.holder(prefixes_of("one", text[:300] + "c" * 5000)) == 5
    assert memory.holder(prefixes_of("two", text)) is None
    assert prefixes_of("one", "short") == ()


def test_a_cache_is_left_where_many_more_users_are() -> None:
    candidates = [Candidate(0, None, 0), Candidate(1, None, SLACK_USERS + 1)]
    found = choose(candidates, users=1, holder=1)
    assert found is not None
    assert found.number == 0
