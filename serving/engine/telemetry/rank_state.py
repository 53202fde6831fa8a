"""The state of one rank (its plan, load and speed), and its JSON form between ranks and the replica's HTTP process."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from sparktier.configs.plan_keys import TierShare
from sparktier.serving.engine.telemetry.spec_stats import SpeculationStats

RankReport = dict[str, Any]
"""A rank's report at its start: its node, model and experts."""


@dataclass(frozen=True)
class RankState:
    """One rank. The group leader reports for its attention group; the other ranks of the group run the same requests.

    `shares` are those of the plan in force, by tier id.
    `running`, `queued` and `speeds` (tokens per second of each user) are by tier id, `step_ms` by rung.
    """

    tp_rank: int
    dp_rank: int
    is_group_leader: bool
    plan_version: int
    rung: int
    rows: int
    shares: Mapping[int, TierShare]
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
    spec_stats: SpeculationStats = field(default_factory=lambda: SpeculationStats(block_tokens=0))


_STATES = TypeAdapter(list[RankState])


def dump(states: Iterable[RankState]) -> str:
    """Return `states` as JSON: SGLang's own messages lose what isn't a plain value under a text key."""
    return _STATES.dump_json(list(states)).decode()


def load(text: str) -> list[RankState]:
    """Return the states in `text`, which `dump` wrote."""
    return _STATES.validate_json(text)
