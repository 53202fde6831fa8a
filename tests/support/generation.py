"""Asking a replica for tokens through SGLang's own `/generate`, and setting its plan."""

import concurrent.futures
import functools
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.signals import Signals
from sparktier.configs.plan_keys import RUNG_KEY, VERSION_KEY, EnginePlan, TierTerms, keys_of
from support import replica_http
from support.tiny_moe import VOCAB_SIZE

Tokens = list[int]


@dataclass(frozen=True)
class Answer:
    """What a replica said: the tokens, and SGLang's facts about the request."""

    tokens: Tokens
    meta: dict[str, Any]


def random_prompts(count: int, *, seed: int, longest: int = 48) -> list[Tokens]:
    """Return prompts of 2 to `longest` tokens, none of them special."""
    rng = random.Random(seed)
    return [[rng.randrange(5, VOCAB_SIZE) for _ in range(rng.randint(2, longest))] for _ in range(count)]


def generate(url: str, prompt: Tokens, *, tokens: int, **params: object) -> Answer:
    """Return the answer to one prompt; greedy and to the full length unless `params` say otherwise."""
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True, **params}
    asked = {"input_ids": prompt, "sampling_params": sampling}
    answer = replica_http.post(f"{url}/generate", json=asked, timeout=300.0)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return Answer(tokens=body["output_ids"], meta=body["meta_info"])


def generate_all(url: str, prompts: Sequence[Tokens], *, tokens: int, at_once: int, **params: object) -> list[Answer]:
    """Return the answers to `prompts`, `at_once` of them in flight."""
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda prompt: generate(url, prompt, tokens=tokens, **params), prompts))


class Switching:
    """Puts random plans in force, their keys drawn from `choices`, while the body of the `with` runs."""

    def __init__(self, url: str, choices: Mapping[str, Sequence[int]], *, seed: int, pause_s: float) -> None:
        self._url, self._choices, self._pause_s = url, choices, pause_s
        self._rng, self._over = random.Random(seed), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._pause_s):
            drawn = {f"sparktier_{key}": self._rng.choice(values) for key, values in self._choices.items()}
            assert set_plan(self._url, drawn)


def set_plan(url: str, keys: Mapping[str, float]) -> bool:
    """Put plan keys in force and return whether every rank took them.

    What a plan must say and `keys` leave out is as the replica was started, with a version above all before it.
    """
    version = {VERSION_KEY: _next_version()}
    answer = replica_http.post(
        f"{url}/set_internal_state", json={"server_args": {**_whole(url), **version, **keys}}, timeout=60.0
    )
    assert answer.status_code == 200, answer.text
    return all(bool(updated) for updated in answer.json())


_last_version = [0]


def _next_version() -> int:
    """Return a version above all before it; as `sparktier up`'s own, it is the time of day in milliseconds."""
    _last_version[0] = max(_last_version[0] + 1, round(time.time() * 1000))
    return _last_version[0]


@functools.cache
def _whole(url: str) -> dict[str, float]:
    """Return the keys of an uncapped plan of the tiers that the replica at `url` was started with."""
    answer = replica_http.get(f"{url}/sparktier/signals", timeout=60.0)
    signals = read_message(Signals, answer.content)
    assert signals.default_tier is not None
    tiers = {tier: TierTerms(terms.promise_tok_s, terms.weight) for tier, terms in signals.shares.items()}
    keys = keys_of(EnginePlan(epoch=1, version=1, default_tier=signals.default_tier, tiers=tiers))
    # The rung is the caller's: a plan without one is refused.
    return {key: value for key, value in keys.items() if key != RUNG_KEY}
