"""Usage adds up: a replica's list of ended requests has the engine's own counts, whatever a request's form and end."""

import json
import uuid
from typing import Any

import httpx
import pytest

from sparktier.configs.contracts.ended import REQUEST_ID_HEADER
from sparktier.serving.clients.replica_keys import bearer
from sparktier.serving.gateway.usage_log.settlement import tokens_of
from support import replica_http
from support.deployment import MODEL, Deployment
from support.ended_requests import ended, page

pytestmark = pytest.mark.engine
GOLD = 5
PROMPT = [7, 8, 9, 10, 11]


def asked(request_id: str, **changes: Any) -> dict[str, Any]:
    params = {"sparktier_tier": GOLD, "sparktier_request": request_id}
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    return {**body, "custom_params": params, **changes}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, 1),
        ({"n": 3}, 4),
        ({"prompt": [PROMPT, PROMPT[:3]]}, 2),
        ({"prompt": [PROMPT, PROMPT[:3]], "n": 2}, 6),
        ({"prompt": [7, 8] * 20}, 1),
    ],
    ids=["one", "choices", "prompts", "both", "cached"],
)
def test_a_replica_tells_of_every_part_of_a_request(drafting: Deployment, changes: dict[str, Any], parts: int) -> None:
    url, request_id = drafting.replica_url(), uuid.uuid4().hex
    headers = bearer(replica_http.key_of(url)) | {REQUEST_ID_HEADER: request_id}
    answer = httpx.post(f"{url}/v1/completions", json=asked(request_id, **changes), headers=headers, timeout=120.0)
    assert answer.status_code == 200, answer.text
    usage, found = answer.json()["usage"], ended(url, request_id)
    assert len(found) == parts
    assert tokens_of(found) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert {each.tier for each in found} == {GOLD}
    assert {each.finish_reason for each in found} == {"length"}
    times = answer.json()["sparktier"]
    assert 0 <= times["prefill_ms"] <= times["first_token_ms"] <= times["ended_ms"] + 1
    assert times["attained_tok_s"] > 0


def test_a_stream_has_its_times_before_its_usage(drafting: Deployment) -> None:
    url, request_id = drafting.replica_url(), uuid.uuid4().hex
    headers = bearer(replica_http.key_of(url)) | {REQUEST_ID_HEADER: request_id}
    body = asked(request_id, stream=True, stream_options={"include_usage": True}, return_spec_tokens_details=True)
    answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=120.0)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    last = [event for event in events if not event["choices"]]
    assert ["sparktier" in event for event in last] == [True] + [False] * (len(last) - 1)
    assert last[-1]["usage"]["completion_tokens"] == 24
    assert last[0]["sparktier"]["attained_tok_s"] > 0


@pytest.mark.parametrize("choices", [1, 3])
def test_one_that_is_hung_up_on_has_what_the_engine_made(drafting: Deployment, choices: int) -> None:
    url, request_id = drafting.replica_url(), uuid.uuid4().hex
    body = asked(request_id, stream=True, max_tokens=4000, n=choices)
    with httpx.stream(
        "POST", f"{url}/v1/completions", json=body, headers=bearer(replica_http.key_of(url)), timeout=120.0
    ) as answer:
        seen = 0
        for line in answer.iter_lines():
            seen += line.startswith("data: {")
            if seen >= 5:
                # Leaving the loop hangs up.
                assert request_id in page(url).in_flight
                break
    found = ended(url, request_id)
    prompt_tokens, completion_tokens = tokens_of(found)
    assert prompt_tokens == len(PROMPT)
    assert 5 <= completion_tokens < 4000 * choices
    assert {each.finish_reason for each in found if each.completion_tokens} == {"abort"}


def test_one_that_ends_while_it_waits_is_told_of(drafting: Deployment) -> None:
    """Of sixteen at once eight run; the others are hung up on before they have begun."""
    url, request_id = drafting.replica_url(), uuid.uuid4().hex
    body = asked(request_id, stream=True, max_tokens=4000, n=16)
    with httpx.stream(
        "POST", f"{url}/v1/completions", json=body, headers=bearer(replica_http.key_of(url)), timeout=120.0
    ) as answer:
        next(answer.iter_lines())
    found = ended(url, request_id)
    # The pass over the prompt before all choices is a part, too.
    assert len(found) == 17
    assert sum(not each.completion_tokens for each in found) > 1
