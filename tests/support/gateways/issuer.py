"""An issuer of tokens for tests: it publishes public keys over a real socket, rotates them, and can be down."""

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx
from joserfc import jwk, jwt

from sparktier.configs.settings.settings import ModelSettings as _Model
from sparktier.configs.settings.settings import Settings, TierSettings, TokenSettings

NAME, AUDIENCE = "https://issuer.example", "sparktier"


class Issuer:
    """Makes tokens; `listed` is what it publishes."""

    def __init__(self) -> None:
        self.key = jwk.RSAKey.generate_key(2048, {"kid": "first", "use": "sig"})
        self.listed: list[Any] = [self.key.as_dict(private=False)]
        self.fetched = 0
        self.down = False

    def rotate(self, kid: str = "second") -> None:
        """Sign by a new key from now on, and publish it alone."""
        self.key = jwk.RSAKey.generate_key(2048, {"kid": kid, "use": "sig"})
        self.listed = [self.key.as_dict(private=False)]

    def token(self, *, head: Mapping[str, Any] | None = None, key: Any = None, **claims: Any) -> str:
        """Return a good token, changed by what is given; a claim of None is left out."""
        now = int(time.time())
        good = {"iss": NAME, "aud": AUDIENCE, "exp": now + 600, "sub": "acme", "scope": "other llm:fast"}
        found = {name: value for name, value in (good | claims).items() if value is not None}
        headers = {"alg": "RS256", "kid": self.key.kid} | (head or {})
        return jwt.encode(headers, found, key or self.key, algorithms=[headers["alg"]])

    def reply(self, request: httpx.Request) -> httpx.Response:
        """Answer a fetch of the keys."""
        self.fetched += 1
        return httpx.Response(503) if self.down else httpx.Response(200, content=json.dumps({"keys": self.listed}))


def settings_with(url: str, **tokens: Any) -> Settings:
    """Return settings that take the issuer's tokens, with the tiers standard (0) and fast (1)."""
    tiers = {0: TierSettings(name="standard", default=True), 1: TierSettings(name="fast", promise_tok_s=20)}
    section = {
        "issuer": NAME,
        "audience": AUDIENCE,
        "keys_url": url,
        "tiers": {"llm:fast": "fast", "llm:all": "standard"},
    }
    return Settings(model=_Model(path="some/model"), tiers=tiers, tokens=TokenSettings(**(section | tokens)))
