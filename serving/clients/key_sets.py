"""Fetches an issuer's public keys (JWKS), within bounds of time and size."""

import asyncio

import aiohttp

from sparktier.configs.errors import ReplicaError
from sparktier.serving.clients.replica import OK

_TIMEOUT_S = 5.0
_MOST_BYTES = 256 << 10


async def fetch_key_set(url: str) -> bytes:
    """Return what `url` answers. It is not redirected.

    Raises:
        ReplicaError: there is no answer in time, or it is no 200 or too large.
    """
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False) as session,
            session.get(url, headers={"Accept": "application/json"}, allow_redirects=False) as response,
        ):
            if response.status != OK:
                raise ReplicaError(f"the issuer must answer with its keys (found {response.status})")
            try:
                content = await response.content.readexactly(_MOST_BYTES)
            except asyncio.IncompleteReadError as error:
                return error.partial
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise ReplicaError(f"the issuer must answer with its keys (found {type(error).__name__})") from None
    raise ReplicaError(f"the issuer's keys must have less than {len(content)} bytes (found more)")
