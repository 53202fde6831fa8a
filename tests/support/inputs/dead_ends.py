"""Requests that run out of tokens to choose, or whose logits break, and how each has to end."""

import concurrent.futures
import json
from dataclasses import dataclass
from typing import Any

import httpx

from sparktier.configs.errors import REQUEST_ENDED
from support import replica_http
from support.deployment import MODEL, SHOWN, Deployment
from support.generation import Tokens, generate, random_prompts

_TIMEOUT_S = 180.0
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_SAMPLED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "free": {"temperature": 1, "seed": 3},
    "top_p": {"temperature": 1, "top_p": 0.9, "seed": 3},
    "top_k": {"temperature": 0.7, "top_k": 20, "seed": 3},
    "min_p": {"temperature": 0.7, "min_p": 0.1, "seed": 3},
}
_SELF = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}
_YES_OR_NO = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}
_LOOP = 'root ::= "ab" [a-z] loop\nloop ::= loop "x"'


@dataclass(frozen=True)
class Ending:
    """A request to the front, and its end: a text that is one of `texts`, or a 400 that names `field`."""

    name: str
    path: str
    body: dict[str, Any]
    texts: tuple[str, ...] = ()
    field: str = ""


def endings() -> list[Ending]:
    """Return the requests: each kind greedy and under each filter."""
    made = []
    for name, sampling in _SAMPLED.items():
        least = {**sampling, "min_tokens": 8, "max_tokens": 10}
        made += [
            Ending(f"regex {name}", COMPLETIONS, {"regex": "ab", **least}, texts=("ab",)),
            Ending(f"schema {name}", CHAT, {"response_format": _YES_OR_NO, **least}, texts=("true", "false")),
            Ending(f"stop id {name}", COMPLETIONS, {"regex": "ab", "stop_token_ids": [70], **least}, texts=("a",)),
            Ending(f"loop {name}", COMPLETIONS, {"ebnf": _LOOP, **least}, field="ebnf"),
            Ending(f"n {name}", COMPLETIONS, {"regex": "ab", "n": 3, "logprobs": 2, **least}, texts=("ab",)),
        ]
    sampling = {**_SAMPLED["top_p"], "max_tokens": 4}
    return [
        *made,
        Ending("self schema", CHAT, {"response_format": _SELF, **sampling}, field="response_format"),
        Ending("self text", COMPLETIONS, {"json_schema": '{"$ref": "#"}', **sampling}, field="json_schema"),
        Ending("self ebnf", COMPLETIONS, {"ebnf": "root ::= root", **sampling}, field="ebnf"),
        Ending("self streamed", COMPLETIONS, {"ebnf": "root ::= root", "stream": True, **sampling}, field="ebnf"),
    ]


def assert_every_request_ends_alone(deployment: Deployment) -> None:
    """Send `endings` and requests whose logits break, all beside others, who answer as if they had been alone."""
    ranks = deployment.rank_pids()
    undisturbed = _bystanders(deployment)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        others = pool.submit(_bystanders, deployment)
        broken = [pool.submit(_broken, deployment, temperature) for temperature in (0.0, 1.0)]
        streamed = pool.submit(_streamed_loop, deployment)
        list(pool.map(lambda ending: _assert_ends(deployment, ending), endings()))
        assert others.result() == undisturbed
        assert [each.result() for each in broken] == [True, True]
        assert streamed.result()
    assert deployment.rank_pids() == ranks


def _assert_ends(deployment: Deployment, ending: Ending) -> None:
    asked = {"messages": [{"role": "user", "content": "x"}]} if ending.path == CHAT else {"prompt": "x"}
    body = {"model": MODEL, **asked, **ending.body}
    answer = httpx.post(deployment.url + ending.path, json=body, headers=SHOWN, timeout=_TIMEOUT_S)
    told = f"{ending.name}: {answer.status_code} {answer.text}"
    if ending.field:
        assert answer.status_code == 400, told
        error = answer.json()["error"]
        assert error["param"] == ending.field, told
        assert error["message"].startswith(f"{ending.field}: "), told
        return
    assert answer.status_code == 200, told
    for choice in answer.json()["choices"]:
        text = choice["message"]["content"] if ending.path == CHAT else choice["text"]
        assert text in ending.texts, told
        assert choice["finish_reason"] == "stop", told


def _streamed_loop(deployment: Deployment) -> bool:
    """Whether a stream that comes to a dead end says so in its last event."""
    body = {"model": MODEL, "prompt": "x", "ebnf": _LOOP, "max_tokens": 10, "stream": True}
    answer = httpx.post(deployment.url + COMPLETIONS, json=body, headers=SHOWN, timeout=_TIMEOUT_S)
    told = [item for item in answer.text.removeprefix("data: ").split("\n\ndata: ") if item.startswith('{"error"')]
    assert told, answer.text
    return "grammar allows no token" in json.loads(told[0])["error"]["message"]


def _broken(deployment: Deployment, temperature: float) -> bool:
    """Whether a request whose logits overflow is told so; the front lets none such through."""
    params = {"temperature": temperature, "top_p": 0.9, "repetition_penalty": 1e-300, "max_new_tokens": 16}
    body = {"input_ids": [20, 30, 40], "sampling_params": {**params, "ignore_eos": True}}
    answer = replica_http.post(f"{deployment.replica_url()}/generate", json=body, timeout=_TIMEOUT_S)
    assert answer.status_code == 500, answer.text
    assert REQUEST_ENDED + "the model's logits are not finite" in answer.text
    return True


def _bystanders(deployment: Deployment) -> list[Tokens]:
    """What four seeded requests, one of them greedy, answer one after the other."""
    prompts = random_prompts(4, seed=77)
    params: list[dict[str, Any]] = [{"temperature": 0}, {"top_p": 0.9}, {"top_k": 30, "min_p": 0.02}, {}]
    url = deployment.replica_url()
    return [
        generate(url, prompt, tokens=40, **{"temperature": 0.8, "sampling_seed": number, **chosen}).tokens
        for number, (prompt, chosen) in enumerate(zip(prompts, params, strict=True))
    ]
