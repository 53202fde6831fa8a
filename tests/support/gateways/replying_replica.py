"""A stand-in for a replica's HTTP server over real sockets, written as a function from a request to a response."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
from aiohttp import web

Reply = Callable[[httpx.Request], Awaitable[httpx.Response] | httpx.Response]


@contextlib.asynccontextmanager
async def replying(reply: Reply) -> AsyncIterator[str]:
    """Yield the address of a server that answers by `reply`; a content that comes piece by piece is sent so."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        asked = httpx.Request(
            request.method, str(request.url), headers=list(request.headers.items()), content=await request.read()
        )
        told = reply(asked)
        response = told if isinstance(told, httpx.Response) else await told
        answer = web.StreamResponse(status=response.status_code)
        answer.content_type = response.headers.get("content-type", "application/json").split(";")[0]
        await answer.prepare(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for part in response.stream:
            await answer.write(part)
        return answer

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
