"""Processes that can't outlive us, and whole trees of them ended in bounded time."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sparktier.serving.supervision import processes

SLEEP = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
# A process that starts one of its own and says its pid.
PARENT = (
    "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print(child.pid, flush=True); time.sleep(600)"
)


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def spawned(code: str, log: Path) -> "subprocess.Popen[bytes]":
    return processes.spawn([sys.executable, "-c", code], log_file=log, env={"MARK": "here"})


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_its_output_is_appended_and_its_environment_is_ours_and_more(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    process = spawned("import os; print(os.environ['MARK'], 'PATH' in os.environ)", log)
    process.wait(timeout=30)
    assert log.read_text() == "before\nhere True\n"


async def test_a_process_is_out_of_reach_of_the_terminals_signals(tmp_path: Path) -> None:
    process = spawned(SLEEP, tmp_path / "log")
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    await processes.stop(process, grace_s=5.0)


async def test_stop_asks_first(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(600)"
    )
    process = spawned(code, log)
    until(lambda: "up" in log.read_text())
    await processes.stop(process, grace_s=20.0)
    assert process.returncode == 7


async def test_stop_kills_what_does_not_listen(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = spawned(DEAF, log)
    until(lambda: "deaf" in log.read_text())
    await processes.stop(process, grace_s=0.2)
    assert process.returncode == -signal.SIGKILL


async def test_stop_takes_the_whole_tree(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = spawned(PARENT, log)
    until(lambda: log.read_text().strip())
    grandchild = int(log.read_text())
    await processes.stop(process, grace_s=0.2)
    until(lambda: gone(grandchild))


async def test_stop_takes_what_a_dead_process_left_behind(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = spawned(PARENT, log)
    until(lambda: log.read_text().strip())
    grandchild = int(log.read_text())
    process.kill()
    process.wait()
    assert not gone(grandchild)
    await processes.stop(process, grace_s=0.2)
    until(lambda: gone(grandchild))


async def test_a_process_that_a_driver_holds_is_given_up_in_bounded_time(tmp_path: Path) -> None:
    process = spawned(SLEEP, tmp_path / "log")

    class Held:
        """Never ends, as a process in uninterruptible sleep doesn't."""

        pid = process.pid

        def poll(self) -> None:
            """Return that it runs."""

        def terminate(self) -> None:
            """Tell it, in vain."""

    held: Any = Held()
    assert not await asyncio.wait_for(processes.stop(held, grace_s=0.1), timeout=60)
    assert await processes.stop(process, grace_s=1.0)


async def test_a_walk_over_all_processes_leaves_the_loop_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, threads = spawned(SLEEP, tmp_path / "log"), set()
    walk = psutil.process_iter

    def noted(*arguments: Any) -> Iterator[psutil.Process]:
        threads.add(threading.current_thread())
        return walk(*arguments)

    monkeypatch.setattr(psutil, "process_iter", noted)
    await processes.stop(process, grace_s=1.0)
    assert threads
    assert threading.main_thread() not in threads


async def test_a_missing_folder_for_the_log_is_made(tmp_path: Path) -> None:
    process = spawned("print('here')", tmp_path / "gone" / "log")
    process.wait(timeout=30)
    assert (tmp_path / "gone" / "log").read_text() == "here\n"


async def test_a_process_whose_owner_is_gone_already_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-c", processes._DIE_WITH_PARENT, str(os.getpid() + 1), "touch", str(tmp_path / "made")]
    assert subprocess.run(command, check=False).returncode == 0
    assert not (tmp_path / "made").exists()


async def test_stopping_a_process_that_has_ended_is_no_error(tmp_path: Path) -> None:
    process = spawned("pass", tmp_path / "log")
    process.wait(timeout=30)
    await processes.stop(process, grace_s=1.0)
    await processes.stop(process, grace_s=1.0)
    assert process.returncode == 0


OWNER = """
import sys, time
from pathlib import Path
from sparktier.serving.supervision import processes
process = processes.spawn([sys.executable, "-c", {code!r}], log_file=Path({log!r}), env={{}})
print(process.pid, flush=True)
time.sleep(600)
"""


def test_a_process_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    script = OWNER.format(code=SLEEP, log=str(tmp_path / "log"))
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert not gone(pid)
    owner.kill()
    owner.communicate()
    until(lambda: gone(pid))


ADOPTER = """
import asyncio, sys, time
from pathlib import Path
import psutil
from sparktier.serving.supervision import processes
log = Path({log!r})
processes.adopt_orphans()
process = processes.spawn([sys.executable, "-c", {code!r}], log_file=log, env={{}})
while not log.read_text().strip():
    time.sleep(0.05)
orphan = psutil.Process(int(log.read_text()))
process.kill()
process.wait()
while orphan.ppid() != psutil.Process().pid:
    time.sleep(0.05)
{then}
"""


def adopted(then: str, tmp_path: Path) -> list[str]:
    """Run `then` in a process that has just adopted `orphan`, and return the lines it prints."""
    script = ADOPTER.format(code=PARENT, log=str(tmp_path / "log"), then=then)
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    return done.stdout.split()


def test_adopted_orphans_leave_no_zombie_when_they_end(tmp_path: Path) -> None:
    then = """
orphan.kill()
while orphan.status() != psutil.STATUS_ZOMBIE:
    time.sleep(0.05)
asyncio.run(processes.reap(besides=lambda: [orphan.pid]))
print(psutil.pid_exists(orphan.pid))
asyncio.run(processes.reap(besides=list))
print(psutil.pid_exists(orphan.pid))
"""
    assert adopted(then, tmp_path) == ["True", "False"]


def test_adopted_orphans_are_ended_with_us(tmp_path: Path) -> None:
    then = """
print(processes.end_descendants(timeout_s=10.0), psutil.pid_exists(orphan.pid), len(psutil.Process().children()))
"""
    assert adopted(then, tmp_path) == ["1", "False", "0"]


def test_a_free_port_is_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", processes.free_port()))


def test_a_held_port_is_its_server_s_alone() -> None:
    with processes.held_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.1", port))
