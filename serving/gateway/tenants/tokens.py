"""JSON Web Tokens: whether one is the issuer's and for us, and which tenant and tiers its claims mean."""

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from joserfc import jwt
from joserfc.errors import ClaimError, ExpiredTokenError, JoseError, MissingClaimError

from sparktier.configs.settings.tenants import TENANT_NAME, TenantLimits
from sparktier.configs.settings.tokens import TokenSettings
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.tenants.directory import Directory, Tenant, prefix_secret
from sparktier.serving.gateway.tenants.key_set import AGAIN_S, KeySets, KeysUnavailable
from sparktier.serving.gateway.tier_resolution import Entitlement, TierTable

_MOST_CHARACTERS = 8192
_MOST_KID_CHARACTERS = 256
_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)


def looks_like_a_token(text: str) -> bool:
    """Return whether `text` has the form of a signed token, which no key of ours has."""
    return len(text) <= _MOST_CHARACTERS and _TOKEN.fullmatch(text) is not None


class Tokens:
    """Judges tokens by `settings`, with the issuer's `keys`. `now_s` is the time of day."""

    def __init__(self, settings: TokenSettings, keys: KeySets, *, pepper: bytes, now_s: Callable[[], float]) -> None:
        self._settings = settings
        self._keys = keys
        self._pepper = pepper
        self._limits = TenantLimits(
            users_at_once=settings.users_at_once,
            requests_per_min=settings.requests_per_min,
            tokens_per_min=settings.tokens_per_min,
        )
        self._claims = jwt.JWTClaimsRegistry(
            now=lambda: int(now_s()),
            leeway=settings.clock_skew_s,
            iss={"essential": True, "value": settings.issuer or ""},
            aud={"essential": True, "value": settings.audience or ""},
            exp={"essential": True},
        )

    async def tenant_of(self, token: str, tiers: TierTable, listed: Directory | None) -> Tenant:
        """Return who shows `token`. A tenant that is `listed` in the keys file keeps the limits that it has there.

        Raises:
            Refused: 401 for a token that isn't good, 503 where the issuer's keys are not at hand.
        """
        claims = await self._verified(token)
        name = claims.get(self._settings.tenant_claim)
        if not isinstance(name, str) or not re.fullmatch(TENANT_NAME, name):
            raise _invalid(f"its {self._settings.tenant_claim} must be a tenant's name, {TENANT_NAME}")
        entitled = self._entitled(claims.get(self._settings.tiers_claim), tiers)
        known = None if listed is None else listed.tenant(name)
        if known is not None:
            return Tenant(name, entitled, known.limits, known.prefix_secret)
        return Tenant(name, entitled, self._limits, prefix_secret(self._pepper, name))

    async def _verified(self, token: str) -> Mapping[str, Any]:
        """Return the claims of a token once its signature and they are good."""
        head = _head(token)
        algorithm, kid = head.get("alg"), head.get("kid")
        # `none`, and HMAC with a public key for its secret, are none of these.
        if not isinstance(algorithm, str) or algorithm not in self._settings.algorithms:
            raise _invalid(f"it must be signed by {', '.join(self._settings.algorithms)}")
        if kid is not None and (not isinstance(kid, str) or len(kid) > _MOST_KID_CHARACTERS):
            raise _invalid("its kid must be a short text")
        try:
            key = await self._keys.key(kid)
        except KeysUnavailable:
            message = "The issuer's keys can't be read, so that no token can be judged. Try again later."
            raise Refused(message, status=503, code="keys_unavailable", retry_after_s=round(AGAIN_S)) from None
        if key is None or key.alg not in (None, algorithm):
            raise _invalid("it must be signed by a key that its issuer publishes")
        try:
            decoded = jwt.decode(token, key, algorithms=[algorithm])
            self._claims.validate(decoded.claims)
        except ExpiredTokenError:
            raise _invalid("it has expired") from None
        except MissingClaimError as error:
            raise _invalid(f"it must have the claim {error.claim}") from None
        except ClaimError as error:
            raise _invalid(f"its {error.claim} is not that of this server, or of this time") from None
        except (JoseError, ValueError, TypeError, RecursionError):
            raise _invalid("its signature must be good") from None
        return decoded.claims

    def _entitled(self, claimed: object, tiers: TierTable) -> Entitlement:
        words = claimed.split() if isinstance(claimed, str) else claimed if isinstance(claimed, list) else []
        # In the order of the settings: the first is the default.
        found = [tiers.ids[tier] for word, tier in self._settings.tiers.items() if word in words and tier in tiers.ids]
        if not found:
            raise _invalid(f"its {self._settings.tiers_claim} must give a tier of this server")
        return Entitlement(frozenset(found), tiers.default if tiers.default in found else found[0])


def _head(token: str) -> Mapping[str, Any]:
    """Return the header of a token, of which nothing is known to be true yet."""
    part = token.partition(".")[0]
    try:
        head = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict):
        raise _invalid("its header must be JSON")
    return head


def _invalid(reason: str) -> Refused:
    message = f"The token is not taken: {reason}. Get a new one from its issuer."
    return Refused(message, status=401, code="invalid_token")
