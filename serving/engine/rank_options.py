"""What the ranks of a replica are told for its lifetime: one frozen model, as JSON in one environment variable.

Imports no SGLang: the process that composes a replica makes it, every rank reads it.
"""

import os
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from sparktier.configs.plan_keys import TIER_PARAM, TierTerms
from sparktier.configs.step_times import StepTimeTable

ENV = "SPARKTIER_RANK_OPTIONS"
ALGORITHM = "SPARKTIER"
"""The name our algorithm has in SGLang's registry."""
# The engine's plugin puts its sampler, with noise keyed by seed and position, in the place of SGLang's own of this name
# (the only one that SGLang lets a CPU have). All of SGLang's ignore a request's seed.
KEYED_SAMPLER = "pytorch"
DEFAULT_RUNNING_REQUESTS = 48
"""Requests that run at once where the settings leave it open: SGLang's own number for its methods of speculation."""
AcceptRule = Literal["match", "ratio"]
CanaryMode = Literal["latch", "watch", "off"]


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class TreeBounds(_Options):
    """Bounds of a draft tree: `rows` verified per request, the anchor's included; parents expanded per level."""

    rows: int
    parents: int
    children: int


class LadderOptions(_Options):
    """`short_tokens`: tokens drafted at rung CHAIN_SHORT. `block_tokens`: None takes the draft checkpoint's.

    `accept_rule`: `match` keeps drafts that equal the target's own keyed choice, `ratio` draws drafts and accepts each
    with probability min(1, p/q). `prompt_lookup`: whether drafts come from a request's own context, beside a
    draft model's or, without `has_draft`, alone.
    """

    short_tokens: int
    block_tokens: int | None = None
    accept_rule: AcceptRule = "match"
    tree: TreeBounds | None = None
    prompt_lookup: bool = False
    has_draft: bool = True

    @property
    def method(self) -> str:
        """The method of the settings that these are the options of."""
        if not self.has_draft:
            return "ngram"
        return "chain" if self.tree is None else "tree"

    def block(self, trained_tokens: int | None) -> int | None:
        """Return the block to draft: the one asked for, but none longer than the checkpoint was trained for."""
        if self.block_tokens is None or trained_tokens is None:
            return self.block_tokens or trained_tokens
        return min(self.block_tokens, trained_tokens)

    def width(self, block_tokens: int) -> int:
        """Return the rows a request may bring to a verify pass, with drafts of `block_tokens`."""
        return max(block_tokens + 1, self.tree.rows if self.tree else 0)

    def chain_rows(self, block_tokens: int) -> list[int]:
        """Return the most rows of a request on each rung of chains, without any draft first."""
        return sorted({1, min(self.short_tokens, block_tokens) + 1, block_tokens + 1})


class PlannerOptions(_Options):
    """`table`: step times of this deployment. `live`: whether survivals of a step's own drafts decide whose rows it
    verifies; that waits for the drafts between drafting and verification, which costs a GPU time.
    """

    table: StepTimeTable
    live: bool


class FeatureOptions(_Options):
    """Layers to capture, how many sequences at a time, and where on rank 0's node the HTTP process listens for rows."""

    target_layer_ids: tuple[int, ...]
    records_at_once: int
    endpoint: str


class RankOptions(_Options):
    """Everything a rank is told. `ladder`: without it our worker doesn't run; `features`: nothing is captured,
    `planner`: each request verifies all rows that rung, caps and row budget allow.

    `canary`: whether an alarm of it latches, is only told of, or nothing is scored; `canary_noise_frac` of the tokens
    of a sound engine are far from the target's choice.

    `tiers`, by id, and `seats` are those in force until the first plan; `safe_rung` is the ceiling when a plan's time
    is over.
    """

    tiers: Mapping[int, TierTerms] = {0: TierTerms()}
    default_tier: int = 0
    seats: int | None = None
    safe_rung: int = 1
    ladder: LadderOptions | None = None
    planner: PlannerOptions | None = None
    canary: CanaryMode = "off"
    canary_noise_frac: float = 0.001
    features: FeatureOptions | None = None

    @property
    def captures_proposals(self) -> bool:
        """Whether a draft's graph may go on to the rows to verify: nothing is drawn, and no share waits for drafts."""
        matches = self.ladder is not None and self.ladder.accept_rule == "match"
        return matches and (self.planner is None or not self.planner.live)

    def environment(self) -> dict[str, str]:
        """Return the variable that carries these options."""
        return {ENV: self.model_dump_json()}


def rank_options() -> RankOptions:
    """Return what this process was told; the defaults where nothing was."""
    text = os.environ.get(ENV)
    return RankOptions() if text is None else RankOptions.model_validate_json(text)


def ladder_options() -> LadderOptions:
    """Return the ladder's options, in a process whose algorithm is ours."""
    ladder = rank_options().ladder
    assert ladder is not None, f"{ENV} has no ladder"
    return ladder


def fresh_endpoint() -> str:
    """Return a ZeroMQ address that no other process has: an abstract socket, so a killed replica leaves no file."""
    return f"ipc://@sparktier-features-{uuid.uuid4().hex}"


def penalty_table_bytes(*, slots: int, vocab: int) -> int:
    """Return what a rank's table of penalties takes: a count of 4 bytes and a stop of 1 for each slot and token."""
    return slots * vocab * (4 + 1)


def asked_tier(custom_params: object) -> int | None:
    """Return the whole number that `custom_params` ask for; gRPC's Struct makes numbers floats on their way."""
    value: Any = custom_params.get(TIER_PARAM) if isinstance(custom_params, Mapping) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return int(value) if float(value).is_integer() else None


def names_a_tier(custom_params: object) -> bool:
    """Whether `custom_params` name a tier, be it one that exists or not."""
    return isinstance(custom_params, Mapping) and custom_params.get(TIER_PARAM) is not None
