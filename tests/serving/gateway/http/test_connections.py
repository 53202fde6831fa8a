"""A connection whose client doesn't finish the head of a request is closed; others aren't touched."""

import asyncio
import contextlib

import pytest

from sparktier.serving.gateway.http import connections
from support.gateways.fronts import fronted

HEAD = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"


async def opened(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"\r\n" + HEAD], ids=["nothing", "some", "some of a second"])
async def test_a_head_that_does_not_end_is_cut_off_in_time(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.3)
    async with fronted() as (url, _):
        reader, writer = await opened(url)
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert answer.count(b"HTTP/1.1 200 OK") == sent.count(b"\r\n\r\n")
    assert answer.endswith(b"The head of a request must arrive within 0.3 s and have at most 65536 bytes.")


async def test_a_head_that_is_too_large_is_cut_off() -> None:
    async with fronted() as (url, _):
        reader, writer = await opened(url)
        writer.write(HEAD)
        answer = asyncio.create_task(reader.read())
        for _ in range(1000):
            if answer.done() or writer.is_closing():
                break
            writer.write(b"x-more: " + b"y" * 2000 + b"\r\n")
            await asyncio.sleep(0)
        # It is reset where it still sends, which may cost it the answer.
        with contextlib.suppress(ConnectionResetError):
            assert b"400 Bad Request" in await asyncio.wait_for(answer, 30)
        writer.close()


async def test_what_comes_in_pieces_in_time_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 60.0)
    async with fronted() as (url, _):
        reader, writer = await opened(url)
        for _ in range(2):
            for part in (HEAD[:9], HEAD[9:], b"\r\n"):
                writer.write(part)
                await asyncio.sleep(0.01)
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b'{"status":"ok"}'), 30)
        writer.close()
