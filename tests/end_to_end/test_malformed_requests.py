"""Requests that are wrong in every way we could think of: a clear 4xx each, and the engine as alive as before."""

import re
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparktier.serving.gateway.requests.rules import REFUSED, fields_of
from support.deployment import MODEL, Deployment

pytestmark = pytest.mark.engine
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASKED = [{"role": "user", "content": "ba"}]


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


WRONG_FIELDS: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": None}),
    (COMPLETIONS, {"prompt": ""}),
    (COMPLETIONS, {"prompt": []}),
    (COMPLETIONS, {"prompt": {"text": "ba"}}),
    (COMPLETIONS, {"prompt": [-1]}),
    (COMPLETIONS, {"prompt": [10_000_000]}),
    (COMPLETIONS, {"prompt": [[1], ["a"]]}),
    (COMPLETIONS, {"prompt": "ba " * 2000}),
    (COMPLETIONS, {"max_tokens": 0}),
    (COMPLETIONS, {"max_tokens": 10**30}),
    (COMPLETIONS, {"max_tokens": 512, "prompt": "ba be bi"}),
    (COMPLETIONS, {"n": 0}),
    (COMPLETIONS, {"n": -3}),
    (COMPLETIONS, {"n": 100_000}),
    (COMPLETIONS, {"prompt": ["ba"] * 100, "n": 100}),
    (COMPLETIONS, {"best_of": -1}),
    (COMPLETIONS, {"logprobs": -1}),
    (COMPLETIONS, {"logprobs": 5000}),
    (COMPLETIONS, {"temperature": -0.5}),
    (COMPLETIONS, {"temperature": "hot"}),
    (COMPLETIONS, {"top_p": 1.5}),
    (COMPLETIONS, {"top_k": 0}),
    (COMPLETIONS, {"seed": 2**80}),
    (COMPLETIONS, {"stop": [""]}),
    (COMPLETIONS, {"stop_token_ids": [99999]}),
    (COMPLETIONS, {"stop_regex": "(a+)+$"}),
    (COMPLETIONS, {"logit_bias": {"99999": 1}}),
    (COMPLETIONS, {"regex": "(("}),
    (COMPLETIONS, {"regex": "((", "stream": True}),
    (COMPLETIONS, {"ebnf": "root ::= "}),
    (COMPLETIONS, {"json_schema": "{"}),
    (COMPLETIONS, {"rid": "mine"}),
    (COMPLETIONS, {"session_params": {"id": "a"}}),
    (COMPLETIONS, {"lora_path": "adapter"}),
    (CHAT, {"messages": []}),
    (CHAT, {"messages": ["ba"]}),
    (CHAT, {"messages": [{"role": "wizard", "content": "ba"}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    (CHAT, {"logprobs": True, "top_logprobs": 5000}),
    (CHAT, {"response_format": {"type": "json_schema"}}),
    (CHAT, {"response_format": schema_format({"type": "banana"})}),
    (CHAT, {"response_format": schema_format({"type": "banana"}), "stream": True}),
    (CHAT, {"chat_template_kwargs": {"tokenize": False}}),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "banana"}}}]}),
    (CHAT, {"tool_choice": {"type": "function", "function": {"name": "missing"}}}),
    (CHAT, {"input_ids": [99999]}),
]


def post(deployment: Deployment, path: str, fields: dict[str, Any]) -> httpx.Response:
    defaults = {"messages": ASKED} if path == CHAT else {"prompt": "ba"}
    body = {"model": MODEL, "max_tokens": 2, **defaults, **fields}
    return httpx.post(deployment.url + path, json=body, timeout=60.0)


def assert_clean_refusal(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) > 10
    assert_no_internals(answer.text)


def assert_no_internals(text: str) -> None:
    assert not re.search(r"Traceback|\.py|site-packages|/root|/home|/project|\.cc:|<class |'loc'|\bNone\b", text), text


@pytest.fixture(scope="module", autouse=True)
def nothing_restarted(sharded: Deployment) -> Any:
    """Whatever is sent here, the ranks that were there before answer afterwards."""
    before = [rank["pid"] for rank in sharded.ranks()]
    failures = sharded.output.count("failed")
    yield
    assert post(sharded, COMPLETIONS, {}).status_code == 200
    assert [rank["pid"] for rank in sharded.ranks()] == before
    assert sharded.output.count("failed") == failures


@pytest.mark.parametrize(("path", "fields"), WRONG_FIELDS, ids=lambda value: str(value)[:60])
def test_wrong_fields(sharded: Deployment, path: str, fields: dict[str, Any]) -> None:
    assert_clean_refusal(post(sharded, path, fields))


def test_an_unknown_model_is_not_found(sharded: Deployment) -> None:
    answer = post(sharded, CHAT, {"model": "gpt-4"})
    assert_clean_refusal(answer)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("raw", "content_type", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[1, 2]", "application/json", 400),
        (b'{"prompt": NaN}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"prompt": "ba"}', "text/plain", 400),
        (b'{"prompt": "' + b"a" * (5 << 20) + b'"}', "application/json", 413),
    ],
    ids=["empty", "cut", "array", "nan", "bytes", "deep", "text", "large"],
)
def test_bodies_that_are_no_object(sharded: Deployment, raw: bytes, content_type: str, status: int) -> None:
    headers = {"Content-Type": content_type}
    answer = httpx.post(sharded.url + COMPLETIONS, content=raw, headers=headers, timeout=60.0)
    assert_clean_refusal(answer)
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/other", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/generate", 404),
        ("POST", "/abort_request", 404),
        ("POST", "/set_internal_state", 404),
        ("GET", "/server_info", 404),
        ("GET", "/sparktier/ranks", 404),
    ],
)
def test_what_is_no_route_here_reaches_no_engine(sharded: Deployment, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, sharded.url + path, timeout=60.0)
    assert_clean_refusal(answer)
    assert answer.status_code == status


def test_a_text_that_can_fit_no_context_reaches_no_engine(sharded: Deployment) -> None:
    """4 MB of text would be tokenised for seconds, in which no other client is answered."""
    answer = post(sharded, COMPLETIONS, {"prompt": "ba " * 1_390_000})
    assert_clean_refusal(answer)
    assert "characters" in answer.json()["error"]["message"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def bodies(path: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """Fields that the route knows and serves, with any values."""
    names = st.sampled_from(sorted(fields_of(path) - REFUSED.keys()))
    return st.tuples(st.just(path), st.dictionaries(names, JSON, min_size=1, max_size=4))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([CHAT, COMPLETIONS]).flatmap(bodies))
def test_random_fields_are_served_or_refused(sharded: Deployment, body: tuple[str, dict[str, Any]]) -> None:
    path, fields = body
    if isinstance(fields.get("n"), int):
        fields["n"] = min(fields["n"], 2)
    answer = post(sharded, path, fields)
    if answer.status_code != 200:
        assert_clean_refusal(answer)
