"""What a simulated cluster is made of and asked: replicas, policies, troubles, requests, and what becomes of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np

from sparktier.cluster.policy.policy_types import PolicyConfig
from sparktier.cluster.simulator.answers import Answer
from sparktier.cluster.step_time import StepTimeModel

Fate = Literal["served", "refused", "failed", "unfinished"]
"""Served whole; refused without room in time; cut off by a failure; not done when the simulation ended."""


class Offered(NamedTuple):
    """A request that is offered. `prefix` are ids of the blocks of its prompt, as traces tell them."""

    at_ms: float
    tier: int
    prompt_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()


class FleetTexts(Protocol):
    """Where answers of a given length come from."""

    def answer(self, rng: np.random.Generator, tokens: int) -> Answer:
        """Draw an answer of so many tokens, 2 or more."""
        ...


class Failure(NamedTuple):
    """A replica that loses all it has, and serves again after `for_ms`."""

    at_ms: float
    replica: int
    for_ms: float


@dataclass(frozen=True)
class Trouble:
    """What goes wrong. Delays are on the way from a replica to the controller and back; losses are of messages."""

    failures: Sequence[Failure] = ()
    signal_delay_ms: float = 50.0
    signal_loss_frac: float = 0.0
    plan_delay_ms: float = 50.0
    plan_loss_frac: float = 0.0


@dataclass(frozen=True)
class ReplicaSpec:
    """One replica, the same for all. `times` is what planner and controller believe, `true_times` what happens."""

    times: StepTimeModel
    true_times: StepTimeModel
    max_running: int
    kv_tokens: int
    chunk_tokens: int
    nodes: int
    """Tokens that a block drafts."""
    prefills: bool = True
    """Whether prompts are prefilled here; else by others, and only their KV counts."""
    live_shares: bool = True
    starts_ms: float = 0.0
    """From its start until it serves."""


@dataclass(frozen=True)
class FleetSpec:
    """A cluster. `config` are the operator's choices, as the controller has them."""

    replicas: int
    replica: ReplicaSpec
    config: PolicyConfig
    gateways: int = 1
    tick_ms: float = 1000.0
    trouble: Trouble = Trouble()


@dataclass
class Result:
    """What became of one offered request. Times are None where it came to none; `replica` served it last."""

    number: int
    offered: Offered
    fate: Fate | None = None
    first_ms: float | None = None
    last_ms: float | None = None
    replica: int | None = None

    @property
    def ttft_ms(self) -> float | None:
        """From its arrival to its first token."""
        return None if self.first_ms is None else self.first_ms - self.offered.at_ms

    @property
    def speed_tok_s(self) -> float | None:
        """Tokens per second after the first; None where it was not served whole."""
        if self.fate != "served" or self.first_ms is None or self.last_ms is None:
            return None
        lasted_ms = self.last_ms - self.first_ms
        return 1000.0 * (self.offered.output_tokens - 1) / lasted_ms if lasted_ms > 0 else float("inf")


@dataclass
class FleetRun:
    """What came of a run.

    `tokens` [(ms, tokens)] are of each step at its end. `rows` are of all decode `steps`, with `row_requests` requests
    in them. `decisions` are changes of what the plan says of a replica.
    """

    results: Sequence[Result]
    tokens: Sequence[tuple[float, int]] = ()
    steps: int = 0
    rows: int = 0
    row_requests: int = 0
    decisions: int = 0
    rungs: Mapping[int, int] = field(default_factory=dict)
    """Decode steps by rung."""
