"""The `tiers` section: the speed each class of user is promised.

A tier's id travels in metrics and between parts: it is never given to another.
"""

from typing import Annotated

from pydantic import Field

from sparktier.configs.settings.section import Section

HIGHEST_TIER_ID = 63
TierId = Annotated[int, Field(ge=0, le=HIGHEST_TIER_ID)]


class TierSettings(Section):
    """One class of users."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_-]{0,31}$", description="What clients and reports call it; lower case, unique."
    )
    promise_tok_s: float | None = Field(
        default=None, gt=0, description="Promised speed of each user, in tokens per second; null is best effort."
    )
    ttft_ms: int | None = Field(
        default=None, ge=1, description="Promised time to first token, in milliseconds; null promises none."
    )
    default: bool = Field(default=False, description="Serves requests that name no tier. Exactly one tier has it.")
