"""The `speculation` section: who drafts, and how much of a draft is verified.

Knows nothing of tiers. Methods are those this version can run: a new one joins `Method` and the table in
`serving/engine_args.py`.
"""

from typing import Literal

from pydantic import Field

from sparktier.configs.model_settings import ModelPath
from sparktier.configs.section import Section

Method = Literal["none", "chain", "dspark_native", "standalone"]


class SpeculationSettings(Section):
    """Drafting and verification."""

    method: Method = Field(
        default="none",
        description="`none`; `chain` (a DSpark drafter, depth changed between steps); `dspark_native` (SGLang's own"
        " DSpark chain); `standalone` (a small model drafts).",
    )
    draft_path: ModelPath | None = Field(
        default=None,
        description="Draft weights. Null with `dspark_native`: they are part of the target's checkpoint.",
    )
    draft_revision: str | None = Field(default=None, description="Commit or tag of a hub id in `draft_path`.")
    block_tokens: int | None = Field(
        default=None, ge=1, le=64, description="Tokens drafted in one step; null takes the draft checkpoint's."
    )
    short_tokens: int = Field(
        default=2, ge=1, le=64, description="Tokens drafted on the short rung of `chain`; fewer than the block."
    )
    verification: Literal["static", "compact"] = Field(
        default="static",
        description="`static` verifies every drafted token; `compact` lets the step's budget trim them.",
    )
    step_cost_path: str | None = Field(
        default=None, description="Step-cost table (SGLang's SPS JSON) that `compact` budgets by."
    )
    calibration_path: str | None = Field(
        default=None, description="Confidence temperatures (SGLang's STS JSON) that `compact` ranks by."
    )

    @property
    def rows_per_request(self) -> int | None:
        """Rows that one request may bring to a verify step: anchor plus block. None: the draft checkpoint decides."""
        if self.method == "none":
            return 1
        return None if self.block_tokens is None else self.block_tokens + 1
