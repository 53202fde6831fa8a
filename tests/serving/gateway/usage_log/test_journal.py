"""The files of the log of use: what was taken is on the disk, a restart finds what is open, a full disk loses aloud."""

import asyncio
import errno
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparktier.configs.errors import ArtifactError
from sparktier.serving.gateway.usage_log import journal as module
from sparktier.serving.gateway.usage_log.journal import FILES, Journal
from sparktier.serving.gateway.usage_log.records import STATES, State, UsageRecord, latest, line_of, records_in

MANY = 1 << 20


def record(engine_id: str, state: State = "open", tokens: int = 0) -> UsageRecord:
    return UsageRecord(state, 2, 1, engine_id, "r", "acme", "gold", "/v1/completions", 1, 0, 3, tokens)


async def add(journal: Journal, *records: UsageRecord) -> None:
    await asyncio.gather(*(journal.add(each) for each in records))


def held(folder: Path) -> dict[str, UsageRecord]:
    lines = [line for file in sorted(folder.glob(FILES)) for line in file.read_bytes().splitlines()]
    return dict(latest(records_in(lines)))


async def test_a_record_is_on_the_disk_when_its_future_is_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log", max_file_bytes=MANY)
    await add(journal, record("a"), record("b"))
    assert held(tmp_path / "log") == {"a": record("a"), "b": record("b")}
    await add(journal, record("a", "complete", 9))
    assert held(tmp_path / "log")["a"].completion_tokens == 9
    journal.close()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "log").glob(FILES)} == {0o600}


async def test_many_records_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    stock = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        synced.append(descriptor)
        stock(descriptor)

    monkeypatch.setattr(module.os, "fdatasync", fdatasync)
    journal = Journal(tmp_path, max_file_bytes=MANY)
    await add(journal, *(record(str(number)) for number in range(500)))
    journal.close()
    assert len(held(tmp_path)) == 500
    assert len(synced) < 50


@pytest.mark.parametrize("most", [4096, MANY])
async def test_a_restart_finds_what_was_open_in_the_newest_file(tmp_path: Path, most: int) -> None:
    journal = Journal(tmp_path, max_file_bytes=most)
    for number in range(100):
        await add(journal, record(str(number)))
        if number % 10:
            await add(journal, record(str(number), "complete", number))
    await add(journal, record("0", "ended", 4))
    journal.close()
    assert (len(list(tmp_path.glob(FILES))) > 3) is (most == 4096)
    again = Journal(tmp_path, max_file_bytes=most)
    assert {each.engine_id: each.state for each in again.left} == {
        str(number): "open" if number else "ended" for number in range(0, 100, 10)
    }
    # A third process still finds them, though this one has added nothing about them.
    await add(again, record("new", "complete"))
    again.close()
    third = Journal(tmp_path, max_file_bytes=most)
    assert sorted(third.left, key=repr) == sorted(again.left, key=repr)
    third.close()
    assert sum(each.completion_tokens for each in held(tmp_path).values()) == 4 + sum(
        number for number in range(100) if number % 10
    )


async def test_a_line_that_a_crash_cut_is_passed_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_file_bytes=MANY)
    await add(journal, record("a"))
    journal.close()
    [file] = tmp_path.glob(FILES)
    file.write_bytes(file.read_bytes() + line_of(record("b"))[:-20])
    again = Journal(tmp_path, max_file_bytes=MANY)
    assert [each.engine_id for each in again.left] == ["a"]
    await add(again, record("c"))
    again.close()
    assert held(tmp_path).keys() == {"a", "c"}


async def test_a_log_has_one_writer(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_file_bytes=MANY)
    with pytest.raises(ArtifactError, match="one gateway"):
        Journal(tmp_path, max_file_bytes=MANY)
    journal.close()
    Journal(tmp_path, max_file_bytes=MANY).close()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"usage\.path: .*file/log must be a folder"):
        Journal(tmp_path / "file" / "log", max_file_bytes=MANY)


async def test_a_full_disk_loses_records_aloud_and_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stock, full = os.write, [False]

    def write(descriptor: int, data: bytes) -> int:
        if not full[0]:
            return stock(descriptor, data)
        # As a real disk does it: what fits is written first.
        if len(data) > 10:
            return stock(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "write", write)
    journal = Journal(tmp_path, max_file_bytes=MANY)
    await add(journal, record("a"))
    full[0] = True
    await add(journal, record("b"), record("c"))
    await add(journal, record("b", "complete", 7))
    assert journal.lost == 3
    full[0] = False
    await add(journal, record("c", "complete", 8))
    journal.close()
    assert held(tmp_path) == {"a": record("a"), "c": record("c", "complete", 8)}
    alarms = [each.message for each in caplog.records if each.levelname == "ERROR"]
    assert len(alarms) == 1
    assert "No space left on device" in alarms[0]


FILLER = """
import asyncio, sys
from pathlib import Path
from sparktier.serving.gateway.usage_log.journal import Journal
from sparktier.serving.gateway.usage_log.records import UsageRecord
async def main():
    journal = Journal(Path(sys.argv[1]), max_file_bytes=1 << 20)
    for number in range(200):
        await journal.add(UsageRecord("complete", 2, 1, str(number), "r", "acme", "gold", "/v1", 1, 0, 3, 1))
    print(journal.lost)
    journal.close()
asyncio.run(main())
"""


def test_a_file_that_the_system_lets_grow_no_more_stays_whole(tmp_path: Path) -> None:
    def bounded() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    command = [sys.executable, "-B", "-c", FILLER, str(tmp_path)]
    done = subprocess.run(command, preexec_fn=bounded, capture_output=True, text=True, check=True)
    [file] = tmp_path.glob(FILES)
    lines = file.read_bytes().splitlines()
    assert len(records_in(lines)) == len(lines) == 200 - int(done.stdout)
    assert 0 < len(lines) < 200


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(STATES)), max_size=12), st.randoms())
def test_what_holds_of_a_request_is_the_same_in_any_order_of_states(
    found: list[tuple[str, State]], rng: random.Random
) -> None:
    records = [record(engine_id, state) for engine_id, state in found]
    shuffled = list(records)
    rng.shuffle(shuffled)
    assert latest(records) == latest(shuffled)
    assert records_in(map(line_of, records)) == records
