"""Random requests against a replica, some of them abandoned or aborted at random times."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from sparktier.serving.clients.replica_keys import bearer
from support import replica_http
from support.generation import Tokens, random_prompts

_SAMPLING_PARAMS: tuple[dict[str, Any], ...] = (
    {},
    {"frequency_penalty": 1.0},
    {"presence_penalty": 0.7, "min_new_tokens": 8},
    {"repetition_penalty": 1.2},
    {"logit_bias": {"100": 4.0}},
    {"stop": ["ba", "ku"]},
    {"ignore_eos": False, "logit_bias": {"1": 5.0}},
    {"regex": "[a-f]{3,9}(xy)+z", "ignore_eos": False},
)


@dataclass
class Ask:
    """One request: what is asked, how it may end before it is answered, and after how long."""

    prompt: Tokens
    params: dict[str, Any]
    ending: str
    after_s: float


@dataclass
class Outcome:
    """How many requests ended in which way, and those greedy ones without penalties that were answered in full."""

    ends: Counter[str] = field(default_factory=Counter)
    greedy: list[tuple[Tokens, Tokens]] = field(default_factory=list)


def random_asks(count: int, *, seed: int) -> list[Ask]:
    """Return requests of any length and sampling parameters; two of five end before their time."""
    rng = random.Random(seed)
    prompts = random_prompts(count, seed=seed, longest=160)
    return [_random_ask(rng, prompt) for prompt in prompts]


def _random_ask(rng: random.Random, prompt: Tokens) -> Ask:
    params = {"max_new_tokens": rng.randint(1, 120), "ignore_eos": True, **rng.choice(_SAMPLING_PARAMS)}
    params["max_new_tokens"] = max(params["max_new_tokens"], params.get("min_new_tokens", 1))
    if rng.random() < 0.5:
        params["temperature"] = 0
    else:
        sampled = {"temperature": rng.uniform(0.2, 1.5), "top_p": rng.uniform(0.5, 1.0), "min_p": rng.uniform(0, 0.1)}
        params |= {**sampled, "top_k": rng.choice([-1, 1, 20]), "sampling_seed": rng.randrange(1 << 30)}
    return Ask(prompt, params, rng.choices(["answered", "hung up", "aborted"], [3, 1, 1])[0], rng.uniform(0, 2.0))


async def send_all(url: str, asks: list[Ask], *, at_once: int, name: str = "soak") -> Outcome:
    """Send `asks`, `at_once` of them in flight; raises whatever was neither an answer nor an end asked for."""
    outcome, room = Outcome(), asyncio.Semaphore(at_once)
    # A server closes a connection that was idle for some seconds, perhaps just as it is used again.
    limits = httpx.Limits(max_connections=4 * at_once, max_keepalive_connections=0)
    async with (
        httpx.AsyncClient(
            base_url=url, headers=bearer(replica_http.key_of(url)), timeout=300.0, limits=limits
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        for number, ask in enumerate(asks):
            await room.acquire()
            # SGLang aborts every request whose id begins like the one named, so all ids are of one length.
            task = group.create_task(_send(client, ask, f"{name}-{number:06d}", outcome))
            task.add_done_callback(lambda _: room.release())
    return outcome


async def _send(client: httpx.AsyncClient, ask: Ask, rid: str, outcome: Outcome) -> None:
    body = {"rid": rid, "input_ids": ask.prompt, "sampling_params": ask.params, "stream": True}
    last: dict[str, Any] = {}
    aborting = asyncio.create_task(_abort(client, rid, ask.after_s)) if ask.ending == "aborted" else None
    try:
        async with asyncio.timeout(ask.after_s if ask.ending == "hung up" else None):
            async with client.stream("POST", "/generate", json=body) as answer:
                assert answer.status_code == 200, await answer.aread()
                async for line in answer.aiter_lines():
                    last = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else last
    except TimeoutError:
        outcome.ends["hung up"] += 1
        return
    finally:
        if aborting is not None:
            await aborting
    if "error" in last:
        assert ask.ending == "aborted", last
        assert "abort" in last["error"]["message"].lower(), last
        outcome.ends["abort"] += 1
        return
    reason = last["meta_info"]["finish_reason"]
    assert reason["type"] in ("abort", "length", "stop"), last
    assert reason["type"] != "abort" or ask.ending == "aborted", last
    outcome.ends[reason["type"]] += 1
    if reason["type"] == "length" and ask.params["temperature"] == 0 and set(ask.params) == _PLAIN:
        assert len(last["output_ids"]) == ask.params["max_new_tokens"]
        outcome.greedy.append((ask.prompt, last["output_ids"]))


_PLAIN = {"max_new_tokens", "ignore_eos", "temperature"}


async def _abort(client: httpx.AsyncClient, rid: str, after_s: float) -> None:
    await asyncio.sleep(after_s)
    (await client.post("/abort_request", json={"rid": rid})).raise_for_status()
