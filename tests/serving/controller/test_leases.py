"""Leases: one holder at a time, each with a higher epoch, by a locked file and by an object of Kubernetes."""

import copy
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sparktier.serving.controller.file_lease import FIRST_EPOCH, FileLease
from sparktier.serving.controller.kubernetes_lease import KubernetesLease


async def test_a_file_has_one_holder_and_each_a_higher_epoch(tmp_path: Path) -> None:
    first, second = FileLease(tmp_path / "lease"), FileLease(tmp_path / "lease")
    assert await first.hold(above=0) == FIRST_EPOCH
    assert await first.hold(above=0) == FIRST_EPOCH
    assert await second.hold(above=0) is None
    await first.give_up()
    assert await second.hold(above=0) == FIRST_EPOCH + 1
    assert await first.hold(above=0) is None
    await second.give_up()
    assert await first.hold(above=40) == 41


async def test_a_file_of_a_holder_that_was_killed_is_free(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys, pathlib, time\n"
        "from sparktier.serving.controller.file_lease import FileLease\n"
        "lease = FileLease(pathlib.Path(sys.argv[1]))\n"
        "print(asyncio.run(lease.hold(above=0)), flush=True)\n"
        "time.sleep(600)\n"
    )
    path = tmp_path / "lease"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == f"{FIRST_EPOCH}\n"
        ours = FileLease(path)
        assert await ours.hold(above=0) is None
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert await ours.hold(above=0) == FIRST_EPOCH + 1


async def test_a_file_that_is_removed_is_held_no_more(tmp_path: Path) -> None:
    """Another controller could hold the file that has come in its place."""
    first, second = FileLease(tmp_path / "lease"), FileLease(tmp_path / "lease")
    await first.hold(above=0)
    (tmp_path / "lease").unlink()
    assert await second.hold(above=FIRST_EPOCH) == FIRST_EPOCH + 1
    assert await first.hold(above=FIRST_EPOCH + 1) is None


async def test_a_file_with_other_content_is_taken_anew(tmp_path: Path) -> None:
    (tmp_path / "lease").write_text("not a number")
    assert await FileLease(tmp_path / "lease").hold(above=6) == 7


class ApiError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"({status})")
        self.status = status


@dataclass
class FakeApi:
    """The server's side of one lease: an object with a version, which a replacement must name."""

    lease: Any = None
    version: int = 0
    down: bool = False
    calls: list[str] = field(default_factory=list)

    async def read_namespaced_lease(self, name: str, namespace: str) -> Any:
        self._called("read")
        if self.lease is None:
            raise ApiError(404)
        found = copy.deepcopy(self.lease)
        found.metadata.resource_version = str(self.version)
        return found

    async def create_namespaced_lease(self, namespace: str, body: Any) -> None:
        self._called("create")
        if self.lease is not None:
            raise ApiError(409)
        self.lease, self.version = copy.deepcopy(body), self.version + 1

    async def replace_namespaced_lease(self, name: str, namespace: str, body: Any) -> None:
        self._called("replace")
        if body.metadata.resource_version != str(self.version):
            raise ApiError(409)
        self.lease, self.version = copy.deepcopy(body), self.version + 1

    def _called(self, what: str) -> None:
        if self.down:
            raise OSError("no route to host")
        self.calls.append(what)


@dataclass
class Now:
    seconds: float = 100.0

    def __call__(self) -> float:
        return self.seconds


def lease(api: FakeApi, now: Now, identity: str) -> KubernetesLease:
    return KubernetesLease(api, namespace="default", name="sparktier", identity=identity, seconds=10, clock=now)


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def now() -> Now:
    return Now()


async def test_an_object_has_one_holder_and_is_renewed(api: FakeApi, now: Now) -> None:
    first, second = lease(api, now, "a"), lease(api, now, "b")
    assert await first.hold(above=0) == FIRST_EPOCH
    for _ in range(20):
        now.seconds += 1
        assert await first.hold(above=0) == FIRST_EPOCH
        assert await second.hold(above=0) is None
    assert api.calls.count("replace") <= 6
    assert api.lease.spec.renew_time.microsecond


async def test_an_object_that_is_not_renewed_goes_to_another_with_a_higher_epoch(api: FakeApi, now: Now) -> None:
    first, second = lease(api, now, "a"), lease(api, now, "b")
    await first.hold(above=0)
    assert await second.hold(above=0) is None
    now.seconds += 9
    assert await second.hold(above=0) is None
    now.seconds += 2
    assert await second.hold(above=0) == FIRST_EPOCH + 1
    assert await first.hold(above=0) is None


async def test_an_object_that_is_given_up_is_free_at_once(api: FakeApi, now: Now) -> None:
    first, second = lease(api, now, "a"), lease(api, now, "b")
    await first.hold(above=0)
    await first.give_up()
    assert await second.hold(above=30) == 31


async def test_without_its_store_a_holder_goes_on_for_the_lease_s_time_only(api: FakeApi, now: Now) -> None:
    first = lease(api, now, "a")
    await first.hold(above=0)
    api.down = True
    now.seconds += 9
    assert await first.hold(above=0) == FIRST_EPOCH
    now.seconds += 2
    assert await first.hold(above=0) is None
    api.down = False
    assert await first.hold(above=0) == FIRST_EPOCH + 1


async def test_of_two_that_take_it_at_once_one_gets_a_conflict(api: FakeApi, now: Now) -> None:
    first, second = lease(api, now, "a"), lease(api, now, "b")
    await first.hold(above=0)
    await first.give_up()
    read = api.read_namespaced_lease
    stale = await read("sparktier", "default")

    async def late(name: str, namespace: str) -> Any:
        return copy.deepcopy(stale)

    assert await second.hold(above=0) == FIRST_EPOCH + 1
    api.read_namespaced_lease = late  # type: ignore[method-assign]
    assert await first.hold(above=0) is None
