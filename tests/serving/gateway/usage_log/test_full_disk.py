"""A gateway whose log of use is on a disk that is full: requests go on, and what is lost is counted and alarmed."""

import asyncio
import contextlib
from pathlib import Path

import httpx
import pytest

from sparktier.serving.clients.replica_keys import new_keys_file
from sparktier.serving.gateway.usage_log.journal import FILES
from sparktier.serving.gateway.usage_log.records import records_in
from support.gateways.gateway_command import RunningGateway, running_gateway
from support.gateways.probed_replica import probed_replica
from support.namespaces import can_mount, with_small_disk

ASKED = {"model": "tiny", "prompt": "Hi", "max_tokens": 2}
DISK_BYTES = 128 << 10
REQUESTS = 20


async def ask(client: httpx.AsyncClient, request_id: str, **fields: object) -> None:
    answer = await client.post("/v1/completions", json=ASKED | fields, headers={"x-request-id": request_id})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == request_id


async def lost(gateway: RunningGateway) -> int:
    async with httpx.AsyncClient(timeout=60) as client:
        lines = (await client.get(f"{gateway.url('internal_port')}/metrics")).text.splitlines()
    [line] = [line for line in lines if line.startswith("sparktier_gateway_usage_lost_records_total ")]
    return round(float(line.split()[1]))


def kept(disk: Path) -> list[tuple[str, str]]:
    """Return the client's id and the state of each record in the log."""
    lines = [line for file in sorted(disk.glob(FILES)) for line in file.read_bytes().splitlines()]
    return [(record.request_id, record.state) for record in records_in(lines)]


@pytest.mark.skipif(not can_mount(), reason="needs to mount a small disk")
async def test_requests_go_on_when_the_disk_of_the_log_is_full(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    async with probed_replica() as replica:
        context = running_gateway(
            tmp_path,
            replica.url,
            new_keys_file(tmp_path),
            wrapper=with_small_disk(folder, DISK_BYTES),
            **{"usage.path": folder},
        )
        gateway = await asyncio.to_thread(context.__enter__)
        # Only the gateway's process has the small disk there.
        disk = Path(f"/proc/{gateway.process.pid}/root{folder}")
        try:
            async with httpx.AsyncClient(base_url=gateway.url(), timeout=60) as client:
                await ask(client, "before")
                assert await lost(gateway) == 0
                filler = disk / "filler"
                fill(filler)
                for number in range(REQUESTS):
                    await ask(client, f"full-{number}", stream=number % 2 == 0)
                gone = await lost(gateway)
                filler.unlink()
                await ask(client, "after")
                assert await lost(gateway) == gone
            records = kept(disk)
            # Each has a record when it is sent and one when it is answered; the last page has room for some.
            assert gone == 2 * REQUESTS - sum(name.startswith("full") for name, _ in records)
            assert gone > REQUESTS
            for name in ("before", "after"):
                assert [state for each, state in records if each == name] == ["open", "complete"]
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)
    assert gateway.output.read_text().count("the log of use must have room") == 1


def fill(filler: Path) -> None:
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
