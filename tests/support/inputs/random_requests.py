"""Random requests to the front that combine everything that decides on a token, and whether each end is declared.

Seeded requests beside them answer as in an undisturbed run; divergences are kept for the tie rule.
"""

import concurrent.futures
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from sparktier.configs.errors import REQUEST_ENDED
from support.deployment import MODEL, SHOWN, Deployment
from support.generation import Tokens, generate, random_prompts
from support.oracles.greedy import assert_same_greedy, first_divergence
from support.tiny_moe import VOCAB_SIZE

_TIMEOUT_S = 300.0
_AT_ONCE = 6
_SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": "boolean"},
    {"type": "integer", "minimum": 3, "maximum": 40},
    {"enum": ["ba", "ku"]},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    {"$ref": "#"},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"type": "banana"},
)
_REGEXES = ("ab", "[a-f]{1,4}", "(xy)+z", "", r"[^\s\S]", "((", "a|b")
_EBNFS = (
    'root ::= "ab"',
    "root ::= root",
    'root ::= "a" root',
    'root ::= "a" loop | "b"\nloop ::= loop "x"',
    'root ::= "ab" [a-z] loop\nloop ::= loop "x"',
    'root ::= ""',
)
_FREE: tuple[dict[str, Any], ...] = ({"temperature": 0}, {"temperature": 0.9, "top_p": 0.9}, {"temperature": 0.7})


@dataclass
class Outcome:
    """How many requests ended in which way, and bystanders whose greedy or sampled answers diverged."""

    ends: Counter[str] = field(default_factory=Counter)
    bystanders: int = 0
    greedy: list[tuple[Tokens, Tokens, Tokens]] = field(default_factory=list)
    sampled: list[tuple[Tokens, Tokens]] = field(default_factory=list)

    def ties(self, model: Path) -> int:
        """Return how many greedy bystanders diverged at a tie; raises AssertionError where one is none."""
        if not self.greedy:
            return 0
        undisturbed, other, prompts = zip(*self.greedy, strict=True)
        return len(assert_same_greedy(undisturbed, other, prompts, model))


def run_random_requests(deployment: Deployment, count: int, *, seed: int) -> Outcome:
    """Send `count` random requests and a seeded bystander beside every eighth; every end must be a declared one."""
    ranks = deployment.rank_pids()
    rng, outcome = random.Random(seed), Outcome()
    with httpx.Client(base_url=deployment.url, headers=SHOWN, timeout=_TIMEOUT_S) as client:
        bystanders = list(_bystanders(rng, max(6, count // 8)))
        undisturbed = [_answer(deployment, *bystander) for bystander in bystanders]
        requests = [_random_request(rng) for _ in range(count)]
        with (
            concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool,
            concurrent.futures.ThreadPoolExecutor(2) as beside,
        ):
            others = [beside.submit(_answer, deployment, *bystander) for bystander in bystanders]
            outcome.ends.update(pool.map(lambda request: _end(client, *request), requests))
            for (prompt, params), before, other in zip(bystanders, undisturbed, others, strict=True):
                _compare(outcome, prompt, params, before, other.result())
    assert deployment.rank_pids() == ranks, "a rank ended"
    return outcome


def _compare(outcome: Outcome, prompt: Tokens, params: Mapping[str, Any], before: Tokens, other: Tokens) -> None:
    outcome.bystanders += 1
    if first_divergence(before, other) is None:
        return
    if params["temperature"] == 0:
        outcome.greedy.append((before, other, prompt))
    else:
        outcome.sampled.append((before, other))


def _bystanders(rng: random.Random, count: int) -> Iterator[tuple[Tokens, dict[str, Any]]]:
    for number, prompt in enumerate(random_prompts(count, seed=rng.randrange(1 << 30))):
        yield prompt, {**_FREE[number % len(_FREE)], "sampling_seed": number}


def _answer(deployment: Deployment, prompt: Tokens, params: Mapping[str, Any]) -> Tokens:
    return generate(deployment.replica_url(), prompt, tokens=24, **params).tokens


def _random_request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """The path and the body of one request; a third of the fields, each at random."""
    body: dict[str, Any] = {"model": MODEL, "max_tokens": rng.randint(1, 24)}
    chat = rng.random() < 0.4
    body |= {"messages": [{"role": "user", "content": "ba ku"}]} if chat else {"prompt": "ba ku"}
    fields: dict[str, Any] = {
        "min_tokens": rng.randint(0, body["max_tokens"]),
        "temperature": rng.choice([0, 0.01, 0.7, 1, 2]),
        "top_p": rng.choice([0.01, 0.5, 0.95, 1]),
        "top_k": rng.choice([-1, 1, 2, 20]),
        "min_p": rng.choice([0, 0.1, 1]),
        "frequency_penalty": rng.choice([-2, 0.5, 2]),
        "presence_penalty": rng.choice([-2, 2]),
        "repetition_penalty": rng.choice([0.01, 0.5, 2]),
        "logit_bias": _biases(rng),
        "seed": rng.randrange(1 << 40),
        "n": rng.choice([1, 2, 4]),
        "stop": rng.choice([["b"], ["ab", "}"], "a"]),
        "stop_token_ids": rng.choice([[70], [69, 263], [1]]),
        "stream": True,
        "ignore_eos": True,
        "logprobs": True if chat else rng.choice([0, 3]),
    }
    body |= {name: value for name, value in fields.items() if rng.random() < 0.35}
    body |= _random_grammar(rng) if rng.random() < 0.6 else {}
    return "/v1/chat/completions" if chat else "/v1/completions", body


def _biases(rng: random.Random) -> dict[str, float]:
    """Everything banned, or all but a few, or a few of the tokens that grammars here need."""
    chosen = rng.choice([range(300), range(5, 300), (69, 70, 263), (1, 3)])
    return {str(token): rng.choice([-100, -100, 100]) for token in chosen if token < VOCAB_SIZE}


def _random_grammar(rng: random.Random) -> dict[str, Any]:
    schema = rng.choice(_SCHEMAS)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    grammars: list[dict[str, Any]] = [
        {"regex": rng.choice(_REGEXES)},
        {"ebnf": rng.choice(_EBNFS)},
        {"response_format": form},
        {"json_schema": json.dumps(schema)},
        {"response_format": {"type": "json_object"}},
    ]
    return rng.choice(grammars)


def _end(client: httpx.Client, path: str, body: Mapping[str, Any]) -> str:
    """Return how a request ended; raises AssertionError where that was not declared."""
    answer = client.post(path, json=body)
    said = f"{path} {json.dumps(body)[:600]}: {answer.status_code} {answer.text[-600:]}"
    if answer.status_code != 200:
        error = answer.json()["error"]
        return _declared(answer.status_code, error, said)
    if not body.get("stream"):
        reasons = {choice["finish_reason"] for choice in answer.json()["choices"]}
        assert reasons <= {"stop", "length"}, said
        return "answered"
    events = [item.removeprefix("data: ") for item in answer.text.strip().split("\n\n")]
    told = [item for item in events if item.startswith('{"error"')]
    if not told:
        assert events[-1] == "[DONE]", said
        return "answered"
    error = json.loads(told[0])["error"]
    return _declared(500 if error["type"] == "server_error" else 400, error, said)


def _declared(status: int, error: Mapping[str, Any], said: str) -> str:
    assert error["message"], said
    if status >= 500:
        assert error["message"].startswith(REQUEST_ENDED), said
        return "ended"
    return "refused"
