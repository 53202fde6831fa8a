"""Host and port as text, a listening socket, and the environment that keeps local calls off proxies."""

import errno
import socket
from collections.abc import Mapping

_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
# Programs differ in which of the two they read; where both are set, most prefer the second.
_NO_PROXY_NAMES = ("NO_PROXY", "no_proxy")


def host_port(host: str, port: int) -> str:
    """Return `host:port`; an IPv6 address gets brackets, which separate it from the port."""
    bare = host.removeprefix("[").removesuffix("]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def http_url(host: str, port: int) -> str:
    """Return the address of an HTTP server, without a slash at its end."""
    return f"http://{host_port(host, port)}"


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host` and `port`. Raises OSError when this machine can't."""
    try:
        found = socket.getaddrinfo(host.removeprefix("[").removesuffix("]"), port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError(errno.EINVAL, "no name of a host") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def no_proxy_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return what to add to `env` so that no library calls this machine through a proxy that `env` names.

    Third-party libraries read proxies from the environment for every call; our own clients are told not to.
    """
    listed = [entry.strip() for name in _NO_PROXY_NAMES for entry in env.get(name, "").split(",")]
    # An asterisk means every host only where it is alone.
    hosts = ["*"] if "*" in listed else [*filter(None, listed), *_THIS_MACHINE]
    return dict.fromkeys(_NO_PROXY_NAMES, ",".join(dict.fromkeys(hosts)))
