"""Command lines that run others in namespaces: with a small disk, a read-only folder, or without root's rights."""

import functools
import subprocess
from pathlib import Path

_MOUNT = ("unshare", "-Urm", "sh", "-c")


@functools.cache
def can_mount() -> bool:
    """Whether this user may mount in a namespace."""
    return _works(*with_small_disk(Path("/mnt"), 1 << 20))


@functools.cache
def can_drop_rights() -> bool:
    """Whether this user may become one without rights."""
    return _works(*without_rights())


@functools.cache
def has_privileged_ports() -> bool:
    """Whether a user without rights may not listen on `PRIVILEGED_PORT`."""
    first_free = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    return can_drop_rights() and first_free.exists() and int(first_free.read_text()) > PRIVILEGED_PORT


PRIVILEGED_PORT = 81


def without_rights(user: int = 1000) -> tuple[str, ...]:
    """Return what runs a command that owns what this user owns, and has no other rights of root's."""
    return ("unshare", "--user", f"--map-user={user}")


def with_small_disk(folder: Path, size_bytes: int, *, full: bool = False) -> tuple[str, ...]:
    """Return what runs a command for which `folder` is an empty disk of this size, or a full one."""
    filled = '; cat /dev/zero > "$0/filler" 2> /dev/null; ' if full else " && "
    return (*_MOUNT, f'mount -t tmpfs -o size={size_bytes} tmpfs "$0"{filled}exec "$@"', str(folder))


def with_read_only(folder: Path) -> tuple[str, ...]:
    """Return what runs a command that can read `folder` but not write it."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    return (*_MOUNT, mount, str(folder))


def _works(*command: str) -> bool:
    try:
        return subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
