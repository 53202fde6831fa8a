"""An issuer's public keys by id: fetched when needed, kept for a while, never fetched more often than bounds allow."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from joserfc import jwk
from joserfc.errors import JoseError

from sparktier.configs.errors import ReplicaError, SparktierError

_log = logging.getLogger(__name__)
REFRESH_S = 300.0
"""Keys of this age are fetched anew, so that one that was withdrawn is not taken for long."""
LONGEST_S = 3600.0
"""An issuer that doesn't answer is outlived by its keys for so long."""
AGAIN_S = 10.0
"""Least time between two fetches, whatever ids of keys clients make up."""
_MOST_KEYS = 64
_LEAST_RSA_BITS = 2048

Key = jwk.RSAKey | jwk.ECKey | jwk.OKPKey


class KeysUnavailable(SparktierError):
    """The issuer's keys are not at hand, so that no token can be judged."""


class KeySets:
    """The keys of one issuer. `fetch` returns its JWKS, `failed` counts fetches that failed."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        *,
        now_s: Callable[[], float],
        failed: Counter[str] | None = None,
    ) -> None:
        self._fetch = fetch
        self._now_s = now_s
        self._failed: Counter[str] = Counter() if failed is None else failed
        self._keys: Mapping[str | None, Key] = {}
        self._read_s: float | None = None
        self._tried_s: float | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str | None) -> Key | None:
        """Return the key `kid`, or None where the issuer has no such key; None asks for the only key.

        An unknown id makes one fetch, which all requests that come meanwhile wait for.

        Raises:
            KeysUnavailable: no keys are at hand.
        """
        age_s = self._age_s()
        if age_s > LONGEST_S or kid not in self._keys:
            await self._refresh()
        elif age_s > REFRESH_S:
            self._begin()
        if self._age_s() > LONGEST_S:
            raise KeysUnavailable
        return self._keys.get(kid)

    def _age_s(self) -> float:
        return float("inf") if self._read_s is None else self._now_s() - self._read_s

    async def _refresh(self) -> None:
        self._begin()
        if self._fetching is not None:
            # A request that is cancelled leaves the fetch to the others.
            await asyncio.shield(self._fetching)

    def _begin(self) -> None:
        """Begin a fetch, unless one runs or the last one was a moment ago."""
        if self._fetching is not None and not self._fetching.done():
            return
        if self._tried_s is not None and self._now_s() - self._tried_s < AGAIN_S:
            return
        self._tried_s = self._now_s()
        self._fetching = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            self._keys = _keys_in(await self._fetch())
        except ReplicaError as error:
            self._failed["issuer_keys"] += 1
            _log.warning("tokens.keys_url: the keys from before stay in force: %s", error)
        else:
            self._read_s = self._now_s()


def _keys_in(content: bytes) -> Mapping[str | None, Key]:
    """Return the public keys in a JWKS by id, and the only one under None too; others in it are left out.

    Raises:
        ReplicaError: it is no JWKS, or has no key that can be used.
    """
    try:
        listed = json.loads(content)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ReplicaError("the issuer's answer must be a JWKS (found something else)") from None
    if not isinstance(listed, list) or len(listed) > _MOST_KEYS:
        raise ReplicaError(f"a JWKS must list at most {_MOST_KEYS} keys (found another)")
    keys: dict[str | None, Key] = {}
    usable = [key for each in listed if (key := _usable(each)) is not None]
    for key in usable:
        keys.setdefault(key.kid, key)
    keys.pop(None, None)
    if not usable:
        raise ReplicaError("a JWKS must have a public key for signatures (found none)")
    return keys | ({None: usable[0]} if len(usable) == 1 else {})


def _usable(listed: Any) -> Key | None:
    if not isinstance(listed, dict) or listed.get("use", "sig") != "sig":
        return None
    try:
        key = jwk.import_key(listed)
        if not isinstance(key, jwk.RSAKey | jwk.ECKey | jwk.OKPKey):
            return None
        if isinstance(key, jwk.RSAKey) and key.raw_value.key_size < _LEAST_RSA_BITS:
            return None
    except (JoseError, ValueError, TypeError):
        return None
    return key
