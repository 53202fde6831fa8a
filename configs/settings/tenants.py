"""The keys file: tenants with the hashes of their keys, their tiers and their limits."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from sparktier.configs.settings.section import Section
from sparktier.configs.settings.tiers import TierName

TENANT_NAME = "[a-z0-9][a-z0-9._-]{0,62}"
TenantName = Annotated[str, Field(pattern=f"^{TENANT_NAME}$")]


def _hash_of_a_key(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("must be 64 hex digits in lower case, as `sparktier key` prints them")
    return text


class TenantLimits(Section):
    """What a tenant may have at once and in a minute; null is no bound."""

    users_at_once: int | None = Field(default=None, ge=1, description="Users in flight: choices times prompts.")
    requests_per_min: int | None = Field(default=None, ge=1, description="Requests, on average and in one burst.")
    tokens_per_min: int | None = Field(default=None, ge=1, description="Tokens of prompts and answers, likewise.")


class TenantSettings(Section):
    """One tenant."""

    keys: Sequence[Annotated[str, AfterValidator(_hash_of_a_key)]] = Field(
        min_length=1, description="HMAC-SHA256 of each of its keys."
    )
    tiers: Sequence[TierName] = Field(min_length=1, description="Names of the tiers it may use.")
    default_tier: TierName | None = Field(
        default=None, description="Serves its requests that name no tier; null is the tier with `default: true`."
    )
    limits: TenantLimits = Field(default=TenantLimits(), description="What it may have at once and in a minute.")
    share_prefixes: bool = Field(
        default=False, description="Shares cached prefixes with all other tenants that say so too."
    )


class TenantsFile(Section):
    """The whole keys file."""

    tenants: Mapping[TenantName, TenantSettings] = Field(min_length=1, description="Tenants by name.")
