"""Starts processes that can't outlive us, and ends a whole tree of them in bounded time.

Only a fork blocks the event loop: walks over all processes run in a thread, and waits have limits.
"""

import asyncio
import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05
# A killed process ends at once, unless a driver or a file system holds it.
_KILLED_WITHIN_S = 2.0
_libc = ctypes.CDLL(None, use_errno=True)
# Run in the new process, which becomes the command. PR_SET_PDEATHSIG is 1; the parent may be gone before it is set.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that all can be ended."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def spawn(command: Sequence[str], *, log_file: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, output appended to `log_file`; the kernel asks it to end when we die.

    The log's folder is made if it is missing. With a session of its own the process gets no Ctrl-C of our terminal, and
    all that it starts in turn can be found by the session. Call this in a thread that lives as long as the process
    should: to the kernel, that thread is the parent.
    """
    log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with log_file.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            start_new_session=True,
        )


async def stop(process: subprocess.Popen[bytes], *, grace_s: float) -> bool:
    """Ask `process` (from `spawn`) to end, and after `grace_s` kill it with everything it started.

    Returns whether it has ended: a driver can hold a killed process in the kernel.
    """
    if process.poll() is None:
        process.terminate()
    await _ended(process, within_s=grace_s)
    await asyncio.to_thread(lambda: _kill(_session(process.pid)))
    return await _ended(process, within_s=_KILLED_WITHIN_S)


async def _ended(process: subprocess.Popen[bytes], *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while process.poll() is None and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_S)
    return process.poll() is not None


def end_descendants(*, timeout_s: float) -> int:
    """Kill every remaining descendant, reap them, and return how many there were."""
    remaining = psutil.Process().children(recursive=True)
    _kill(remaining)
    psutil.wait_procs(remaining, timeout=timeout_s)
    return len(remaining)


async def reap(*, besides: Callable[[], Collection[int]]) -> None:
    """Collect ended orphans that we adopted; otherwise they stay in the process table.

    `besides` returns the pids whose exit status another caller waits for; it is asked after the walk.
    """
    ended = await asyncio.to_thread(_ended_children)
    for pid in set(ended) - set(besides()):
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _ended_children() -> list[int]:
    ended = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                ended.append(child.pid)
    return ended


def _session(leader: int) -> list[psutil.Process]:
    """Return the processes of a session. A process whose parent has died is still in it, though in no tree."""
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
    """Return a port that is free now, for a server that starts at once."""
    with held_port(host) as port:
        return port


@contextmanager
def held_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Yield a port that the system gives to no other socket while the body runs; a server can listen on it by number.

    A port that is free now may be any connection's a minute later. Servers set SO_REUSEADDR (asyncio's do), and on
    Linux sockets that set it can share a port as long as only one of them listens.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, 0))
        yield int(held.getsockname()[1])
