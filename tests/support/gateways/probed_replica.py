"""A stand-in for a replica that passes a gateway's probes; a prompt of `wait` gets a token and then nothing, ever."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from aiohttp import web

from support.gateways.rank_report import RANK

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
FLOOD_INTERVAL_S = 0.05


class ProbedReplica:
    """`url` is where it serves; `waiting` counts the streams that wait. A prompt of `flood` gets tokens without end."""

    def __init__(self) -> None:
        self.url = ""
        self.waiting = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a probe or a request."""
        if request.method == "GET":
            return web.json_response([RANK] if request.path == "/sparktier/ranks" else {})
        asked = json.loads(await request.read())
        if not asked.get("stream"):
            choice = {"index": 0, "text": "ab", "finish_reason": "length"}
            return web.json_response({"id": "x", "choices": [choice], "usage": USAGE})
        return await self._stream(request, str(asked["prompt"]))

    async def _stream(self, request: web.BaseRequest, prompt: str) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        token = {"id": "x", "choices": [{"index": 0, "text": "a" * (16_384 if prompt == "flood" else 1)}]}
        event = b"data: " + json.dumps(token).encode() + b"\n\n"
        await answer.write(event)
        self.waiting += 1
        try:
            while prompt == "flood":
                await answer.write(event)
                await asyncio.sleep(FLOOD_INTERVAL_S)
            if prompt == "wait":
                # The end of the connection cancels this.
                await asyncio.Event().wait()
        finally:
            self.waiting -= 1
        await answer.write(b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\ndata: [DONE]\n\n")
        return answer


@contextlib.asynccontextmanager
async def probed_replica() -> AsyncIterator[ProbedReplica]:
    """Run one on a free port."""
    replica = ProbedReplica()
    runner = web.ServerRunner(web.Server(replica.answer, handler_cancellation=True))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    replica.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield replica
    finally:
        await runner.cleanup()
