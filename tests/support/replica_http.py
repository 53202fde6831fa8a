"""httpx for a replica's own port: shows the admin key of the deployment that told where the replica serves."""

from typing import Any

import httpx

from sparktier.serving.clients.replica_keys import bearer

_KEYS: dict[str, str] = {}


def remember(url: str, key: str) -> str:
    """Show `key` to the replica at `url` from now on, and return `url`."""
    _KEYS[_origin(url)] = key
    return url


def key_of(url: str) -> str:
    """Return the key of the replica that `url` leads to."""
    return _KEYS[_origin(url)]


def get(url: str, **options: Any) -> httpx.Response:
    """Do as `httpx.get`."""
    return httpx.get(url, headers=bearer(key_of(url)), **options)


def post(url: str, **options: Any) -> httpx.Response:
    """Do as `httpx.post`."""
    return httpx.post(url, headers=bearer(key_of(url)), **options)


def _origin(url: str) -> str:
    return str(httpx.URL(url).copy_with(path="/", query=None))
