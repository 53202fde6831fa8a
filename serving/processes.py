"""Starting processes so that they can't outlive us, and ending a whole tree of them in bounded time.

Knows nothing of what they run.
"""

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none is out of our sight."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def spawn(command: Sequence[str], *, log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, output appended to `log`; it is told to end when we die.

    A session of its own keeps the terminal's Ctrl-C to us alone, and names all that `command` starts in turn.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )


async def stop(process: subprocess.Popen[bytes], *, grace_s: float) -> None:
    """Ask `process` (from `spawn`) to end, and after `grace_s` kill it with everything it started."""
    if process.poll() is None:
        process.terminate()
    deadline = time.monotonic() + grace_s
    while process.poll() is None and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_S)
    _kill(_session(process.pid))
    process.wait()


def end_descendants(*, timeout_s: float) -> int:
    """Kill every remaining descendant, reap them, and return how many there were."""
    remaining = psutil.Process().children(recursive=True)
    _kill(remaining)
    psutil.wait_procs(remaining, timeout=timeout_s)
    return len(remaining)


def reap(*, besides: Sequence[int]) -> None:
    """Collect ended orphans that we adopted, else they stay in the process table.

    `besides` are the pids whose exit status somebody still waits for.
    """
    for child in psutil.Process().children():
        try:
            if child.pid not in besides and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
        except (psutil.NoSuchProcess, ChildProcessError):
            continue


def _session(leader: int) -> list[psutil.Process]:
    """Return the processes of a session; one whose parent has died is still in it, and in nobody's tree."""
    return [process for process in psutil.process_iter() if _session_of(process.pid) == leader]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nothing listens on now; for a server that starts at once."""
    with held_port(host) as port:
        return port


@contextmanager
def held_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Yield a port that the system gives to nobody else while the body runs; a server may listen on it by its number.

    A port that was merely free a minute ago may have gone to any connection since. Servers set SO_REUSEADDR (asyncio's
    do), and Linux lets sockets that did share a port of which one listens.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, 0))
        yield int(held.getsockname()[1])
