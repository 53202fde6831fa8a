"""The `tokens` section: JSON Web Tokens of an issuer in place of keys, and what their claims mean here."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from sparktier.configs.settings.section import Section
from sparktier.configs.settings.tiers import TierName

# Signatures whose keys an issuer can publish. With a shared secret anyone who checks a token could make one.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519"]


def _default_algorithms() -> Sequence[Algorithm]:
    return ["RS256", "ES256"]


class TokenSettings(Section):
    """Whose tokens are taken, and how a tenant and its tiers follow from them."""

    issuer: str | None = Field(
        default=None,
        min_length=1,
        description="The `iss` of the tokens that are taken ([gateway](gateway.md#tokens)); null takes none.",
    )
    audience: str | None = Field(default=None, min_length=1, description="What the tokens' `aud` must name.")
    keys_url: str | None = Field(
        default=None,
        min_length=1,
        description="Address of the issuer's public keys (JWKS): https, or http on this machine.",
    )
    algorithms: Sequence[Algorithm] = Field(
        default_factory=_default_algorithms, min_length=1, description="Signatures that are taken."
    )
    tenant_claim: str = Field(default="sub", min_length=1, description="Claim whose text is the tenant's name.")
    tiers_claim: str = Field(
        default="scope", min_length=1, description="Claim whose words, in a text or a list, give tiers."
    )
    tiers: Mapping[str, TierName] = Field(
        default_factory=dict,
        description="Tier by word of that claim; the first one here that a token has is its default, unless it has the"
        " tier with `default: true`. A token without any is refused.",
    )
    clock_skew_s: int = Field(default=30, ge=0, le=300, description="How far the issuer's clock may be off.")
    users_at_once: int | None = Field(
        default=None,
        ge=1,
        description="Users in flight of a tenant that the keys file doesn't have; null: no bound.",
    )
    requests_per_min: int | None = Field(default=None, ge=1, description="Its requests a minute, likewise.")
    tokens_per_min: int | None = Field(default=None, ge=1, description="Its tokens a minute, likewise.")
