"""Keys of clients: made at random, kept as HMAC-SHA256 under a secret pepper, looked up without telling by time.

A key has 256 random bits, so that a slow hash would add nothing.
"""

import hmac
import os
import secrets
import stat
from collections import defaultdict
from collections.abc import Iterable, MutableMapping
from hashlib import sha256
from pathlib import Path

from sparktier.configs.errors import ConfigError, Problem

PEPPER_ENV = "SPARKTIER_PEPPER"
_PREFIX = "sk-"
_KEY_BYTES = 32
_MOST_KEY_CHARACTERS = 256
_LEAST_PEPPER_BYTES = 32
# Hex digits of a hash that candidates are found by; all of it is then compared in constant time.
_START = 8
_CURE = "Make one: (umask 077; openssl rand -hex 32 > pepper)."


def new_key() -> str:
    """Return a key that no one has seen."""
    return _PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def keyed_hash(pepper: bytes, text: str, *, purpose: str = "key") -> str:
    """Return the HMAC-SHA256 of `text` in hex; of two purposes the hashes of one text differ."""
    return hmac.new(pepper, f"{purpose}\0{text}".encode(), sha256).hexdigest()


class KeyRing:
    """Which tenant holds which key, as pairs of a key's hash and the tenant's name."""

    def __init__(self, pepper: bytes, hashes: Iterable[tuple[str, str]]) -> None:
        self._pepper = pepper
        self._by_start: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for hashed, tenant in hashes:
            self._by_start[hashed[:_START]].append((hashed, tenant))

    def tenant_of(self, key: str) -> str | None:
        """Return the name of the tenant that holds `key`, or None."""
        if not key or len(key) > _MOST_KEY_CHARACTERS:
            return None
        found = keyed_hash(self._pepper, key)
        holders = [
            tenant for hashed, tenant in self._by_start.get(found[:_START], ()) if hmac.compare_digest(hashed, found)
        ]
        return holders[0] if holders else None


def bearer_key(authorization: str | None) -> str | None:
    """Return the key in the header `Authorization: Bearer KEY`, or None."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def read_pepper(file: str | None, env: MutableMapping[str, str]) -> bytes:
    """Return the pepper in `file`, or without one in `env`, where it is removed so that no child process gets it.

    Raises:
        ConfigError: there is none, it is short, or others may read the file.
    """
    if file is not None:
        return _long_enough(_private(Path(file)).strip(), "gateway.pepper_file")
    found = env.pop(PEPPER_ENV, None)
    if found is None:
        rule = f"must be given with gateway.keys_file or tokens.issuer, unless {PEPPER_ENV} has the pepper"
        raise ConfigError([Problem("gateway.pepper_file", rule, "null", _CURE)])
    return _long_enough(found.strip().encode(), PEPPER_ENV)


def _private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            pepper = file.read()
    except OSError as error:
        found = f"{path}: {error.strerror}"
        raise ConfigError([Problem("gateway.pepper_file", "must be a readable file", found, _CURE)]) from None
    if mode & 0o077:
        rule, cure = "must be a file that only its owner can read", f"Run chmod 600 {path}."
        raise ConfigError([Problem("gateway.pepper_file", rule, f"mode {mode:04o}", cure)])
    return pepper


def _long_enough(pepper: bytes, path: str) -> bytes:
    if len(pepper) < _LEAST_PEPPER_BYTES:
        rule = f"must hold at least {_LEAST_PEPPER_BYTES} characters"
        raise ConfigError([Problem(path, rule, f"{len(pepper)}", _CURE)])
    return pepper
