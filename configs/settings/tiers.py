"""The `tiers` section: the speed each class of user is promised, its share of a step, and what happens without room.

A tier's id travels in metrics and between parts: it is never given to another.
"""

from typing import Annotated, Literal

from pydantic import Field

from sparktier.configs.settings.section import Section

HIGHEST_TIER_ID = 63
TierId = Annotated[int, Field(ge=0, le=HIGHEST_TIER_ID)]
TierName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class TierSettings(Section):
    """One class of users."""

    name: TierName = Field(description="What clients and reports call it; lower case, unique.")
    promise_tok_s: float | None = Field(
        default=None, gt=0, description="Promised speed of each user, in tokens per second; null is best effort."
    )
    ttft_ms: int | None = Field(
        default=None, ge=1, description="Promised time to first token, in milliseconds; null promises none."
    )
    max_stall_ms: int | None = Field(
        default=None,
        ge=1,
        description="Longest that prefill of others' prompts may hold up its users' tokens, in milliseconds, by the"
        " deployment's step times; null is no bound.",
    )
    weight: float = Field(
        default=1.0, gt=0, le=1000, description="What a token of its users is worth beside those of other tiers."
    )
    cap_tokens: int | None = Field(
        default=None, ge=0, description="Most drafted tokens of a request that one step verifies; null is no bound."
    )
    cap_users: int | None = Field(
        default=None,
        ge=0,
        description="Most of its users at once on one replica; null leaves it to what the controller finds feasible.",
    )
    share_frac: float | None = Field(
        default=None, gt=0, le=1, description="Largest share of a replica's users at once; null is no bound."
    )
    yields: bool = Field(
        default=False,
        description="May use room that promised tiers leave idle, and is put back into the queue when they need it.",
    )
    on_full: Literal["queue", "downgrade", "reject"] = Field(
        default="queue",
        description="Without room: `queue` within `ttft_ms`, `downgrade` to the tier of `downgrade_to`, or `reject`.",
    )
    downgrade_to: TierName | None = Field(
        default=None, description="Name of the tier that serves instead with `on_full: downgrade`; it promises less."
    )
    default: bool = Field(default=False, description="Serves requests that name no tier. Exactly one tier has it.")

    @property
    def promised_tok_s(self) -> float:
        """The promise as a number; best effort is 0."""
        return self.promise_tok_s or 0.0

    def most_users(self, running: int) -> int | None:
        """Return the operator's bound on its users at a replica that runs `running` requests at once; None: none."""
        return most_users(self.cap_users, self.share_frac, running)


def most_users(cap_users: int | None, share_frac: float | None, running: int) -> int | None:
    """Return the lower of two bounds on a tier's users; `share_frac` is of `running` requests at once."""
    of_share = None if share_frac is None else int(share_frac * running)
    return min((bound for bound in (cap_users, of_share) if bound is not None), default=None)
