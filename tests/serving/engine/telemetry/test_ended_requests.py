"""Ended requests: each end is counted once with the ranks' own figures, in pages of rising seq, and the oldest go."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.tokenizer_manager import TokenizerManager

from sparktier.configs.contracts.ended import EndedRequest
from sparktier.serving.engine.telemetry import ended_requests
from sparktier.serving.engine.telemetry.ended_requests import Counts, EndedRequests, attained_tok_s

COUNTS = Counts(7, 21, 3, "stop")


def state(request_id: object = "r-1", tier: object = 5, **fields: Any) -> Any:
    """SGLang's state of a request that arrived at 10 s."""
    custom = {"sparktier_tier": tier, "sparktier_request": request_id}
    request = SimpleNamespace(sampling_params={"custom_params": custom}, **fields)
    return SimpleNamespace(obj=request, time_stats=SimpleNamespace(created_time=10.0), output_ids=[1, 2])


def watch(kept: int = 100) -> EndedRequests:
    return EndedRequests(kept=kept, clock=lambda: 14.0, day_s=lambda: 1000.0)


def test_an_end_has_the_ranks_counts_and_the_times_of_its_stages() -> None:
    ended = watch()
    times = SimpleNamespace(forward_entry_time=10.5, prefill_finished_time=12.0)
    ended.add(state(sparktier_prompt=2), COUNTS._replace(times=times))
    [found] = ended.page(0, replica_id="replica-0").ended
    assert found == EndedRequest(
        seq=1,
        request_id="r-1",
        prompt=2,
        tier=5,
        prompt_tokens=7,
        completion_tokens=21,
        cached_tokens=3,
        finish_reason="stop",
        arrived_at_ms=996_000,
        ended_at_ms=1_000_000,
        queue_ms=500.0,
        prefill_ms=1500.0,
        decode_ms=2000.0,
    )
    assert attained_tok_s([found, found]) == 10.0


def test_one_that_never_ran_has_no_stages_and_no_speed() -> None:
    ended = watch()
    ended.add(state(), Counts(0, 0, 0, "abort"))
    [found] = ended.of("r-1")
    assert (found.queue_ms, found.prefill_ms, found.decode_ms) == (None, None, None)
    assert attained_tok_s([found]) is None


@pytest.mark.parametrize("request_id", [None, 7, "", "a b", "é", "x" * 129, "a\n"])
@pytest.mark.parametrize("tier", [None, True, -1, 64, "5"])
def test_what_is_no_id_and_no_tier_is_left_out(request_id: object, tier: object) -> None:
    ended = watch()
    ended.add(state(request_id, tier), COUNTS)
    [found] = ended.page(0, replica_id="replica-0").ended
    assert (found.request_id, found.tier) == (None, None)


def test_a_request_without_custom_params_counts() -> None:
    ended = watch()
    for params in ({}, {"custom_params": None}, None):
        ended.add(SimpleNamespace(**vars(state()) | {"obj": SimpleNamespace(sampling_params=params)}), COUNTS)
    assert ended.page(0, replica_id="replica-0").last == 3


@given(st.integers(0, 30), st.integers(1, 8), st.integers(1, 5), st.integers(0, 40))
def test_pages_tell_each_kept_request_once_in_order(count: int, kept: int, page: int, after: int) -> None:
    ended = watch(kept)
    for _ in range(count):
        ended.add(state(), COUNTS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ended_requests, "PAGE", page)
        seen: list[int] = []
        while found := ended.page(seen[-1] if seen else after, replica_id="replica-0"):
            assert (found.kept_from, found.last) == (max(1, count - kept + 1), count)
            seen += [each.seq for each in found.ended]
            if not found.ended:
                break
        assert seen == list(range(max(after, count - kept) + 1, count + 1))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> EndedRequests:
    """The list behind SGLang's tokenizer manager, whose own work is left out."""

    async def output(self: Any, output: Any) -> None:
        self.rid_to_state.clear()

    for name, stock in (("_handle_batch_output", output), ("_handle_abort_req", lambda self, abort: None)):
        monkeypatch.setattr(TokenizerManager, name, stock)
    monkeypatch.setattr(TokenizerManager, "_init_req_state", lambda self, request, raw=None: None)
    ended = watch()
    ended_requests.install(ended)
    return ended


def manager(**states: Any) -> Any:
    found = TokenizerManager.__new__(TokenizerManager)
    found.rid_to_state = states
    return found


def output(**reasons: str | None) -> Any:
    return SimpleNamespace(
        rids=list(reasons),
        finished_reasons=[reason and {"type": reason} for reason in reasons.values()],
        prompt_tokens=[7] * len(reasons),
        completion_tokens=list(range(20, 20 + len(reasons))),
        cached_tokens=[3] * len(reasons),
        time_stats=None,
    )


def test_only_those_that_ended_in_a_step_are_told(installed: EndedRequests) -> None:
    tokenizer = manager(a=state("a"), b=state("b"), HEALTH_CHECK_1=state("c"))
    asyncio.run(tokenizer._handle_batch_output(output(a=None, b="length", gone="stop", HEALTH_CHECK_1="stop")))
    [found] = installed.page(0, replica_id="replica-0").ended
    assert (found.request_id, found.completion_tokens, found.finish_reason) == ("b", 21, "length")


@pytest.mark.parametrize(("tokens", "status", "counted"), [(1, 400, 0), (2, 400, 2), (1, 500, 1), (1, None, 1)])
def test_what_the_engine_refuses_has_no_tokens(
    installed: EndedRequests, tokens: int, status: int | None, counted: int
) -> None:
    told = output(a="abort")
    told.finished_reasons[0]["status_code"] = status
    told.completion_tokens = [tokens]
    asyncio.run(manager(a=state("a"))._handle_batch_output(told))
    [found] = installed.page(0, replica_id="replica-0").ended
    assert (found.completion_tokens, found.prompt_tokens) == (counted, 7 if counted else 0)


def test_one_that_is_aborted_while_it_waits_is_told(installed: EndedRequests) -> None:
    tokenizer = manager(a=state("a"))
    for rid in ("a", "gone"):
        tokenizer._handle_abort_req(SimpleNamespace(rid=rid))
    [found] = installed.page(0, replica_id="replica-0").ended
    assert (found.request_id, found.prompt_tokens, found.completion_tokens) == ("a", 0, 2)
    assert found.finish_reason == "abort"


def test_an_answer_without_tokens_is_passed_on(installed: EndedRequests) -> None:
    asyncio.run(manager(a=state())._handle_batch_output(SimpleNamespace(rids=["a"], finished_reasons=["stop"])))
    assert installed.page(0, replica_id="replica-0").last == 0


def test_a_page_names_what_is_still_in_flight() -> None:
    ended = watch()
    ended.add(state("a"), COUNTS)
    states = [state("c"), state("b"), state("b"), state(None)]
    page = ended.page(0, replica_id="replica-0", states=states)
    assert (page.in_flight, page.kept_since_ms) == (("b", "c"), 1_000_000)


@pytest.mark.parametrize("choices", [1, 3])
def test_the_prompts_of_a_request_are_told_apart(installed: EndedRequests, choices: int) -> None:
    request = GenerateReqInput(text=["one", "two"], sampling_params={"n": choices})
    request.normalize_batch_and_arguments()
    manager()._init_req_state(request)
    assert [getattr(request[place], "sparktier_prompt", None) for place in range(2)] == [0, 1]
