"""The `speculation` section: who drafts, and how much of a draft is verified.

Methods are those this version can run: a new one joins `Method` and the table in `serving/deployment/engine_args.py`.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from sparktier.configs.settings.model import ModelPath
from sparktier.configs.settings.section import Section

Method = Literal["none", "chain", "tree", "ngram", "dspark_native", "standalone"]
DRAFTED_LADDERS: tuple[Method, ...] = ("chain", "tree")
"""Those of `LADDERS` that have a drafter."""
LADDERS: tuple[Method, ...] = (*DRAFTED_LADDERS, "ngram")
"""Methods whose depth our own worker changes between steps."""
HIGHEST_RUNG: Mapping[Method, int] = {"chain": 2, "tree": 3, "ngram": 2, "dspark_native": 2}
"""Where the ladder ends, for methods that have one."""
LOOKUP_TOKENS = 8
"""Drafts of a request with `ngram` where the settings leave it open."""


class SpeculationSettings(Section):
    """Drafting and verification."""

    method: Method = Field(
        default="none",
        description="`none`; `chain` (a DSpark drafter, depth changed between steps); `tree` (the same with trees above"
        " chains); `ngram` (no drafter: chains of what followed the latest tokens earlier in the request);"
        " `dspark_native` (SGLang's own DSpark chain); `standalone` (a small model drafts).",
    )
    draft_path: ModelPath | None = Field(
        default=None,
        description="Draft weights. Null with `dspark_native`: they are part of the target's checkpoint.",
    )
    draft_revision: str | None = Field(default=None, description="Commit or tag of a hub id in `draft_path`.")
    block_tokens: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Tokens drafted in one step, at most the draft checkpoint's; null takes that, and 8 with `ngram`.",
    )
    short_tokens: int = Field(default=2, ge=1, le=64, description="Tokens drafted on the short rung; cut to the block.")
    accept_rule: Literal["match", "ratio"] = Field(
        default="match",
        description="How `chain` and `tree` accept drafts: `match` keeps those that equal the target's own choice,"
        " `ratio` draws drafts and keeps each with probability min(1, p/q). Neither changes the distribution.",
    )
    prompt_lookup: bool = Field(
        default=False,
        description="Whether `chain` and `tree` also draft what followed the latest tokens earlier in the request's own"
        " prompt and answer. Both kinds of drafts compete for the same rows; needs `accept_rule: match`.",
    )
    tree_rows: int = Field(
        default=12, ge=2, le=128, description="Rows of a request's tree with `tree`, its anchor's included."
    )
    tree_parents: int = Field(default=4, ge=1, le=32, description="Nodes of a tree expanded on each level.")
    tree_children: int = Field(default=4, ge=1, le=32, description="Children of each expanded node.")
    safe_rung: int = Field(
        default=1,
        ge=0,
        le=3,
        description="Highest rung once a plan's time is over without another: 0 off, 1 short chain, 2 chain, 3 tree.",
    )
    canary: Literal["latch", "watch", "off"] = Field(
        default="latch",
        description="Scores emitted tokens of `chain`, `tree` and `ngram` by plain prefill ([canary](canary.md)):"
        " `latch` switches a replica's speculation off when tokens are wrong too often, `watch` only tells.",
    )
    canary_noise_frac: float = Field(
        default=0.001,
        ge=0.00001,
        le=0.003,
        description="Share of scored tokens that a sound engine leaves far from the target's choice in plain prefill:"
        " routers that round to another expert, mostly. [How to measure it](canary.md#noise).",
    )
    verification: Literal["static", "compact"] = Field(
        default="static",
        description="`static` verifies every drafted token; `compact` lets the step's budget trim them.",
    )
    step_cost_path: str | None = Field(
        default=None, description="Step-cost table (SGLang's SPS JSON) that `compact` budgets by."
    )
    step_times_path: str | None = Field(
        default=None,
        description="This deployment's step times, a file of `sparktier profile`. With it the verify planner gives each"
        " request the rows that are worth their time; null verifies all that the rung allows.",
    )
    live_shares: bool | None = Field(
        default=None,
        description="Whether the planner shares out rows by the survivals of the step's own drafts, for which a GPU"
        " waits, or by those of the step before; null: on CPUs alone.",
    )
    calibration_path: str | None = Field(
        default=None, description="Confidence temperatures (SGLang's STS JSON) that `compact` ranks by."
    )

    @property
    def rows_per_request(self) -> int | None:
        """Rows that one request may bring to a verify step: anchor plus block. None: the draft checkpoint decides."""
        if self.method == "none":
            return 1
        block = self.drafted_tokens
        return None if block is None else max(block + 1, self.tree_rows if self.method == "tree" else 0)

    @property
    def drafted_tokens(self) -> int | None:
        """Tokens drafted at once. None: the draft checkpoint decides."""
        return LOOKUP_TOKENS if self.method == "ngram" and self.block_tokens is None else self.block_tokens
