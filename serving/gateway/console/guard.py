"""Who may see the console, and who may act through it. Pure.

A page of another site can make a browser on this machine send requests here, and can give its own name the address of
this machine. Neither opens anything: the name of the host is checked always, and an action needs the console's own
origin and the admin key, which no browser sends by itself.
"""

import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Denied(NamedTuple):
    """An answer to who may not: HTTP's status, and the reason."""

    status: int
    reason: str


_NO_KEY = Denied(401, "Send the admin key of the run as `Authorization: Bearer KEY`. The keys file of the run has it.")


@dataclass(frozen=True)
class Guard:
    """The guard of a listener on `bound_host`, which may be any address."""

    bound_host: str
    admin_key: str = field(repr=False)

    @property
    def reads_need_a_key(self) -> bool:
        """Whether others than users of this machine can reach the listener."""
        return not _is_loopback(self.bound_host)

    def reading(self, headers: Mapping[str, str]) -> Denied | None:
        """Return why who sent `headers` (names in lower case) may not read, or None."""
        if not self._is_own_host(headers.get("host", "")):
            return Denied(421, "The console answers under an address or `localhost`, not under another host name.")
        if self.reads_need_a_key and not self._has_key(headers):
            return _NO_KEY
        return None

    def acting(self, headers: Mapping[str, str]) -> Denied | None:
        """Return why who sent `headers` may not act, or None."""
        denied = self.reading(headers)
        if denied is not None:
            return denied
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return Denied(403, "An action must come from the console's own page.")
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return Denied(403, "An action must come from the console's own page.")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return Denied(415, "An action must be JSON.")
        return None if self._has_key(headers) else _NO_KEY

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return secrets.compare_digest(key.strip().encode(), self.admin_key.encode()) and scheme.lower() == "bearer"

    def _is_own_host(self, host: str) -> bool:
        name = _without_port(host)
        return name in ("localhost", self.bound_host.strip("[]")) or _address(name) is not None


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host.strip("[]"))
    return host == "localhost" or (address is not None and address.is_loopback)
