"""Times in answers: whole ones and streams have them once, valid to the byte, and other answers stay as they are."""

import json
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sparktier.configs.contracts.ended import REQUEST_ID_HEADER, EndedRequest
from sparktier.serving.engine.telemetry.answer_times import AnswerTimes, times_of

EVENTS = [
    'data: {"choices":[{"text":"says \\"choices\\":[]"}]}\n\n',
    'data: {"choices":[],"sglext":{}}\n\n',
    'data: {"choices":[],"usage":{}}\n\ndata: [DONE]\n\n',
]
TIMES = {"arrived_at_ms": 1000, "ended_ms": 5000, "prefill_ms": 10.0, "first_token_ms": 40.0, "attained_tok_s": 5.0}


def ended(*, arrived_ms: int = 1000, tokens: int = 21, **changes: Any) -> EndedRequest:
    fields: dict[str, Any] = {
        "seq": 1,
        "request_id": "r-1",
        "prompt_tokens": 3,
        "completion_tokens": tokens,
        "cached_tokens": 0,
        "finish_reason": "stop",
        "arrived_at_ms": arrived_ms,
        "ended_at_ms": 6000,
        "queue_ms": 10.0,
        "prefill_ms": 30.0,
        "decode_ms": 4000.0,
    }
    return EndedRequest(**fields | changes)


class Ended:
    """A list with one request."""

    def of(self, request_id: str) -> list[EndedRequest]:
        return [ended()] if request_id == "r-1" else []


async def whole(request: Any) -> Response:
    return JSONResponse({"choices": [], "text": "é"}, status_code=int(request.query_params.get("status", 200)))


async def stream(request: Any) -> Response:
    return StreamingResponse(iter(EVENTS), media_type="text/event-stream")


async def text(request: Any) -> Response:
    return Response("{}", media_type="text/plain")


APP = AnswerTimes(
    Starlette(routes=[Route(f"/{each.__name__}", each) for each in (whole, stream, text)]),
    ended=Ended(),  # type: ignore[arg-type]
)


async def get(path: str, request_id: str | None = "r-1") -> httpx.Response:
    headers = {} if request_id is None else {REQUEST_ID_HEADER: request_id}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://replica") as client:
        return await client.get(path, headers=headers)


async def test_a_whole_answer_has_them() -> None:
    answer = await get("/whole")
    assert answer.json() == {"choices": [], "text": "é", "sparktier": TIMES}
    assert int(answer.headers["content-length"]) == len(answer.content)


async def test_a_stream_has_them_once_before_its_last_events() -> None:
    events = (await get("/stream")).text.split("\n\n")
    assert [*events[:1], *events[2:]] == "".join(EVENTS).split("\n\n")
    assert json.loads(events[1].removeprefix("data: ")) == {"choices": [], "sparktier": TIMES}


@pytest.mark.parametrize(("path", "request_id"), [("/whole", None), ("/whole", "r-2"), ("/whole?status=400", "r-1")])
async def test_other_whole_answers_stay_as_they_are(path: str, request_id: str | None) -> None:
    answer = await get(path, request_id)
    assert answer.json() == {"choices": [], "text": "é"}
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize("request_id", [None, "r-2"])
async def test_other_streams_stay_as_they_are(request_id: str | None) -> None:
    assert (await get("/stream", request_id)).text == "".join(EVENTS)
    assert (await get("/text")).text == "{}"


def test_of_several_users_the_first_to_begin_and_the_last_to_end_count() -> None:
    warm_up = ended(tokens=0, queue_ms=5.0, decode_ms=None, ended_at_ms=2000)
    quick, slow = ended(arrived_ms=1100, decode_ms=2000.0), ended(arrived_ms=1200, tokens=41, ended_at_ms=7000)
    assert times_of([slow, quick, warm_up]) == {
        "arrived_at_ms": 1000,
        "ended_ms": 6000,
        "prefill_ms": 5.0,
        "first_token_ms": 140.0,
        "attained_tok_s": 10.0,
    }


def test_what_a_request_did_not_reach_is_left_out() -> None:
    found = times_of([ended(tokens=0, queue_ms=None, prefill_ms=None, decode_ms=None)])
    assert found == {"arrived_at_ms": 1000, "ended_ms": 5000}
