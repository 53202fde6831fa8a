"""The state of one rank (its plan, load and speed), and its JSON form between ranks and the replica's HTTP process."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from sparktier.configs.contracts.signals import CanaryReport
from sparktier.configs.plan_keys import EnginePlan
from sparktier.serving.engine.telemetry.spec_stats import SpeculationStats

NO_CANARY = CanaryReport(state="off", scored_tokens=0, alarms=0)
RankReport = dict[str, Any]
"""A rank's report at its start: its node, model and experts."""


@dataclass(frozen=True)
class RankState:
    """One rank. The group leader reports for its attention group; the other ranks of the group run the same requests.

    `plan` is what the rank applies, taken `plan_age_ms` ago; `refused` is why it refused another since.
    `running`, `queued`, `queue_age_ms` (of the oldest), `arrivals_s`, `speeds` (tokens per second of each user),
    `accepted_tokens` (a step of each user) `met` (promises met, requests judged) and
    `retractions` (of requests that have ended) are by tier id, `step_ms` by rung.
    `latched` is why rung 0 holds whatever plans say. `drift_frac` is measured over predicted step time, where there is
    a table to predict by.
    """

    tp_rank: int
    dp_rank: int
    is_group_leader: bool
    plan: EnginePlan
    plan_age_ms: int | None
    expired: bool
    refused: str | None
    running: Mapping[int, int]
    queued: Mapping[int, int]
    kv_used_frac: float
    context_tokens_p50: int
    step_ms: Mapping[int, float]
    prefill_frac: float
    decode_steps: int
    decode_ms: float
    speeds: Mapping[int, list[float]]
    unknown_tier_requests: int
    max_running: int
    kv_tokens: int
    prefill_ms_per_token: float | None
    queue_age_ms: Mapping[int, int]
    arrivals_s: Mapping[int, float]
    accepted_tokens: Mapping[int, list[float]]
    met: Mapping[int, tuple[int, int]]
    retractions: Mapping[int, int] = field(default_factory=dict)
    latched: str | None = None
    canary: CanaryReport = NO_CANARY
    drift_frac: float | None = None
    spec_stats: SpeculationStats = field(default_factory=lambda: SpeculationStats(block_tokens=0))


_STATES = TypeAdapter(list[RankState])


def dump(states: Iterable[RankState]) -> str:
    """Return `states` as JSON: SGLang's own messages lose what isn't a plain value under a text key."""
    return _STATES.dump_json(list(states)).decode()


def load(text: str) -> list[RankState]:
    """Return the states in `text`, which `dump` wrote."""
    return _STATES.validate_json(text)
