"""Chunks of features between rank 0 and the HTTP process: nothing is lost, mixed up or kept without need."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zmq
from hypothesis import given
from hypothesis import strategies as st

from sparktier.configs.errors import ConfigError, ReplicaError
from sparktier.serving.engine.features.capture import RowSender, prefilled
from sparktier.serving.engine.features.feature_rows import REQUEST_PREFIX, FeatureRows, frames, joined, parsed
from sparktier.serving.engine.features.inbox import Inbox
from sparktier.serving.engine.features.layers import require_layers
from sparktier.serving.engine.rank_options import fresh_endpoint
from support.oracles.oracle_draft import make_oracle_draft
from support.sglang_rank import cpu_server_args
from support.tiny_moe import make_tiny_moe

HIDDEN, LAYERS = 6, 3


def random_rows(start: int, count: int, dtype: torch.dtype = torch.float32) -> FeatureRows:
    generator = torch.Generator().manual_seed(start * 1000 + count)
    tensors = (torch.randn(count, width, generator=generator).to(dtype) for width in (LAYERS * HIDDEN, HIDDEN))
    return FeatureRows(start, *tensors)


def same(one: FeatureRows, other: FeatureRows) -> bool:
    equal = torch.equal(one.features, other.features) and torch.equal(one.last_hidden, other.last_hidden)
    return one.start == other.start and equal and one.features.dtype == other.features.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_frames_hold_what_was_put_in(dtype: torch.dtype) -> None:
    rows = random_rows(37, 5, dtype)
    request_id, found = parsed(frames("a-b", rows))
    assert request_id == "a-b"
    assert same(found, rows)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_chunks_make_a_whole(lengths: list[int]) -> None:
    whole = random_rows(0, sum(lengths))
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    cuts = [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    parts = [FeatureRows(cut.start, whole.features[cut], whole.last_hidden[cut]) for cut in cuts]
    assert same(joined(parts), whole)


def batch(*requests: tuple[str, int, int]) -> Any:
    """A prefill batch as SGLang has it: id, tokens already prefilled, tokens in this chunk."""
    ids, prefixes, lengths = zip(*requests, strict=True)
    mode = SimpleNamespace(is_extend=lambda: True)
    reqs = [SimpleNamespace(rid=request_id) for request_id in ids]
    return SimpleNamespace(forward_mode=mode, reqs=reqs, prefix_lens=list(prefixes), extend_lens=list(lengths))


def test_each_request_gets_its_own_rows_and_users_none() -> None:
    mine = batch((f"{REQUEST_PREFIX}a", 0, 3), ("user", 5, 4), (f"{REQUEST_PREFIX}b", 8, 2))
    rows = random_rows(0, 9)
    output = SimpleNamespace(hidden_states=rows.features, last_hidden_states=rows.last_hidden)
    found = dict(prefilled(mine, output))
    assert list(found) == [f"{REQUEST_PREFIX}a", f"{REQUEST_PREFIX}b"]
    assert same(found[f"{REQUEST_PREFIX}a"], FeatureRows(0, rows.features[:3], rows.last_hidden[:3]))
    assert same(found[f"{REQUEST_PREFIX}b"], FeatureRows(8, rows.features[7:], rows.last_hidden[7:]))


def test_a_batch_of_users_is_left_alone() -> None:
    assert list(prefilled(batch(("user", 0, 4)), SimpleNamespace())) == []


async def received(*sent: FeatureRows, length_tokens: int) -> FeatureRows:
    endpoint = fresh_endpoint()
    inbox, sender = Inbox(endpoint), RowSender(endpoint)
    with inbox.expecting("mine", length_tokens) as whole:
        sender.send("gone", random_rows(0, 4))
        for rows in sent:
            sender.send("mine", rows)
        return await asyncio.wait_for(whole, 10)


async def test_the_inbox_joins_chunks_and_drops_what_is_not_expected() -> None:
    first, second = random_rows(0, 4), random_rows(4, 3)
    assert same(await received(first, second, length_tokens=7), joined([first, second]))


@pytest.mark.parametrize("missing", ["first", "middle", "a chunk that came twice"])
async def test_a_gap_is_an_error_and_not_a_shorter_record(missing: str) -> None:
    chunks = [random_rows(0, 4), random_rows(4, 3), random_rows(7, 2)]
    sent = {"first": chunks[1:], "middle": [chunks[0], chunks[2]], "a chunk that came twice": [chunks[0], *chunks]}
    with pytest.raises(ReplicaError, match="must come next"):
        await received(*sent[missing], length_tokens=9)


BAD_MESSAGES: dict[str, list[bytes]] = {
    "nothing": [b""],
    "one part": frames("mine", random_rows(0, 4))[:1],
    "no text": [b"\xff\xfe", b"", b""],
    "no numbers": [b"mine zero four float32", b"", b""],
    "no such type": [b"mine 0 4 float31", b"abcd", b"abcd"],
    "no type at all": [b"mine 0 4 load", b"abcd", b"abcd"],
    "bytes that are no tensor": [b"mine 0 4 float32", b"abc", b"abc"],
    "no rows": [b"mine 0 0 float32", b"", b""],
    "other widths": frames("mine", FeatureRows(4, torch.zeros(3, 5), torch.zeros(3, 2))),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
async def test_a_message_that_can_t_be_read_is_counted_and_the_next_ones_are_read(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = fresh_endpoint()
    inbox, sender = Inbox(endpoint), RowSender(endpoint)
    with inbox.expecting("mine", 7):
        sender.send("mine", random_rows(0, 4))
        async with asyncio.timeout(10):
            # Two senders' messages may overtake each other.
            while not inbox._expected["mine"]._next:
                await asyncio.sleep(0.01)
        with zmq.Context.instance().socket(zmq.PUSH) as other:
            other.connect(endpoint)
            other.send_multipart(BAD_MESSAGES[name])
        async with asyncio.timeout(10):
            while not inbox.unreadable_messages:
                await asyncio.sleep(0.01)
    with inbox.expecting("next", 5) as whole:
        sender.send("next", random_rows(0, 5))
        assert same(await asyncio.wait_for(whole, 10), random_rows(0, 5))
    assert inbox.unreadable_messages == 1
    assert "message 1 that can't be read" in caplog.text


async def test_an_end_of_listening_is_told_to_those_who_wait_and_mended_for_the_next() -> None:
    endpoint = fresh_endpoint()
    inbox, sender = Inbox(endpoint), RowSender(endpoint)
    with inbox.expecting("mine", 4) as whole:
        assert inbox._receiving is not None
        inbox._receiving.cancel()
        with pytest.raises(ReplicaError, match="listening ended"):
            await asyncio.wait_for(whole, 10)
    assert same(await received_by(inbox, sender), random_rows(0, 5))


async def received_by(inbox: Inbox, sender: RowSender) -> FeatureRows:
    """Ask until the system has given the inbox's address back, which takes it a moment."""
    async with asyncio.timeout(10):
        while True:
            try:
                with inbox.expecting("next", 5) as whole:
                    sender.send("next", random_rows(0, 5))
                    return await whole
            except ReplicaError:
                await asyncio.sleep(0.05)


async def test_a_missing_end_is_waited_for() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(received(random_rows(0, 4), length_tokens=5), 0.5)


def test_layers_that_can_t_be_read_are_refused_before_the_start(tmp_path: Path) -> None:
    model = make_tiny_moe(tmp_path / "model")
    arguments = cpu_server_args(model)
    require_layers(arguments, (0, 2))
    with pytest.raises(ConfigError, match="between 0 and 2"):
        require_layers(arguments, (0, 3))
    arguments.speculative_draft_model_path = str(make_oracle_draft(tmp_path / "draft", model))
    require_layers(arguments, (0, 2))
    with pytest.raises(ConfigError, match=r"layers that the draft reads, which are \[0, 2\]"):
        require_layers(arguments, (1, 2))
