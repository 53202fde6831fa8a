"""Server-sent events of a replica become messages, each parsed once, however the stream is cut; an end is never taken
for granted.
"""

import itertools
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.configs.errors import ReplicaLost
from sparktier.serving.gateway.core import events
from sparktier.serving.gateway.core.events import Message, MessageStream, Restatement, batches
from sparktier.serving.gateway.refused import Refused

SENT = b'data: {"id":1}\n\n: a comment\n\ndata: {"id":2,"text":"data: [DONE]"}\n\ndata: {"id":3}\n\ndata: [DONE]\n\n'
MESSAGES = [{"id": 1}, {"id": 2, "text": "data: [DONE]"}, {"id": 3}]


async def each(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def all_of(*chunks: bytes) -> list[list[Message]]:
    return [messages async for messages in batches(each(chunks), Restatement({}, tier="gold"))]


@given(st.lists(st.integers(0, len(SENT)), max_size=8))
def test_events_are_whole_however_they_are_cut(cuts: list[int]) -> None:
    stream = MessageStream()
    places = [0, *sorted(cuts), len(SENT)]
    found = [message for begin, end in itertools.pairwise(places) for message in stream.messages(SENT[begin:end])]
    assert found == MESSAGES
    assert stream.done


@pytest.mark.parametrize("event", [b"data: {\n\n", b"data: 3\n\n", b'data: {"a": \xff}\n\n'])
def test_an_event_that_is_no_message_is_the_replica_s_fault(event: bytes) -> None:
    with pytest.raises(ReplicaLost):
        MessageStream().messages(event)


async def test_a_stream_comes_chunk_by_chunk_and_says_when_nothing_comes() -> None:
    token = b'data: {"id":1}\n\n'
    assert await all_of(token + token, b"", token, b"data: [DONE]\n\n") == [[{"id": 1}] * 2, [], [{"id": 1}]]


async def test_a_stream_that_ends_early_is_lost() -> None:
    with pytest.raises(ReplicaLost):
        await all_of(b'data: {"id":1}\n\n')


async def test_what_came_before_an_error_is_not_lost_with_it() -> None:
    error = b'data: {"error":{"message":"no","code":400}}\n\n'
    found = batches(each([b'data: {"id":1}\n\n' + error]), Restatement({}, tier="gold"))
    assert await anext(found) == [{"id": 1}]
    with pytest.raises(Refused, match="no"):
        await anext(found)


async def test_each_event_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    parse = events.from_json
    monkeypatch.setattr(events, "from_json", lambda data: parsed.append(data) or parse(data))
    usage = b'data: {"choices":[{"index":0,"text":"a"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    body = {"prompt": "a", "logprobs": 1, "stream": True}
    chunks = each([usage] * 5 + [b"data: [DONE]\n\n"])
    found = [messages async for messages in batches(chunks, Restatement(body, tier="gold"))]
    assert len(found) == len(parsed) == 5
