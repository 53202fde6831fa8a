"""What one tenant has in flight and has left of its minute, and the permit of each of its requests. Pure."""

import math
from dataclasses import dataclass, field

from sparktier.configs.settings.tenants import TenantLimits
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.tenants.token_bucket import TokenBucket

# When one of a tenant's own requests ends is not known.
_RETRY_AFTER_USERS_S = 1
_RATE_CODE = "rate_limit_exceeded"


@dataclass(frozen=True)
class Load:
    """What a request brings: users, and the tokens of prompts and answers that are expected of it.

    `prompt_tokens` are those of its prompts, `beginning` is that of the first.
    """

    users: int
    tokens: int
    prompt_tokens: int = field(default=0, compare=False)
    beginning: str = field(default="", compare=False, repr=False)


class Allowance:
    """The account of one tenant."""

    def __init__(self) -> None:
        self.users = 0
        self._requests: TokenBucket | None = None
        self._tokens: TokenBucket | None = None

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are limited."""
        return self._tokens is not None

    def admit(self, load: Load, limits: TenantLimits, *, now_s: float) -> "Permit":
        """Take what `load` needs and return its permit.

        Raises:
            Refused: it exceeds `limits`; nothing was taken.
        """
        self._requests = _bucket(self._requests, limits.requests_per_min, now_s)
        self._tokens = _bucket(self._tokens, limits.tokens_per_min, now_s)
        self._require_users(load.users, limits.users_at_once)
        for bucket, amount, name, limit in (
            (self._requests, 1, "requests", limits.requests_per_min),
            (self._tokens, load.tokens, "tokens", limits.tokens_per_min),
        ):
            wait_s = bucket.wait_s(amount, now_s=now_s) if bucket else 0.0
            if wait_s > 0:
                retry_s = max(1, math.ceil(round(wait_s, 3)))
                message = f"This tenant may have {limit} {name} a minute. Send the request again in {retry_s} s."
                raise Refused(message, status=429, code=_RATE_CODE, retry_after_s=retry_s)
        if self._requests:
            self._requests.take(1, now_s=now_s)
        if self._tokens:
            self._tokens.take(load.tokens, now_s=now_s)
        self.users += load.users
        return Permit(self, load)

    def correct(self, tokens: int, *, now_s: float) -> None:
        """Take `tokens` more, or give back where they are negative."""
        if self._tokens:
            self._tokens.take(tokens, now_s=now_s)

    def _require_users(self, users: int, most: int | None) -> None:
        if most is None:
            return
        if users > most:
            message = f"n times the number of prompts must be at most {most} for this tenant (found {users}). Ask less."
            raise Refused(message, param="n", code="too_many_users")
        if self.users + users > most:
            message = f"This tenant may have {most} users at once, and has {self.users}. Send the request again later."
            raise Refused(message, status=429, code=_RATE_CODE, retry_after_s=_RETRY_AFTER_USERS_S)


class Permit:
    """One admitted request, which holds its users until `close`."""

    def __init__(self, allowance: Allowance, load: Load) -> None:
        self._allowance = allowance
        self._load = load
        self._settled = False
        self._closed = False

    @property
    def counts_tokens(self) -> bool:
        """Whether the tokens of its tenant are limited."""
        return self._allowance.counts_tokens

    def settle(self, tokens: int, *, now_s: float) -> None:
        """Put the `tokens` that it really had in the place of those expected; the first time counts."""
        if not self._settled:
            self._settled = True
            self._allowance.correct(tokens - self._load.tokens, now_s=now_s)

    def close(self) -> None:
        """Let its users go. What was expected and never settled stays taken."""
        if not self._closed:
            self._closed = True
            self._allowance.users -= self._load.users


def _bucket(bucket: TokenBucket | None, per_min: int | None, now_s: float) -> TokenBucket | None:
    """Return the bucket of a limit, which the keys file may have changed since the last request."""
    if per_min is None:
        return None
    if bucket is None:
        return TokenBucket(per_min, now_s=now_s)
    bucket.resize(per_min, now_s=now_s)
    return bucket
