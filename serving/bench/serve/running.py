"""Offers a load in time: each request is sent when it is due, whatever has become of those before it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from sparktier.serving.bench.serve.asking import Asked
from sparktier.serving.bench.serve.offered import Offered


class Clock(Protocol):
    """Milliseconds since the load began."""

    def now_ms(self) -> float:
        """Return the time."""
        ...

    def until(self, at_ms: float) -> Coroutine[Any, Any, None]:
        """Return at `at_ms`, or at once if it is past."""
        ...


class LoopClock:
    """The event loop's clock; 0 is when it is made."""

    def __init__(self) -> None:
        self._begun_s = asyncio.get_running_loop().time()

    def now_ms(self) -> float:
        """Return the time."""
        return 1000.0 * (asyncio.get_running_loop().time() - self._begun_s)

    async def until(self, at_ms: float) -> None:
        """Return at `at_ms`, or at once if it is past."""
        await asyncio.sleep(max(at_ms - self.now_ms(), 0.0) / 1000.0)


async def run_load(
    requests: Sequence[Offered],
    ask: Callable[[Offered], Awaitable[Asked]],
    clock: Clock,
    *,
    stopping: asyncio.Event,
    on_ended: Callable[[Asked], None] = lambda asked: None,
) -> list[Asked]:
    """Send every request when it is due and return what became of each, in their order.

    Once `stopping` is set, no more are sent, and those whose answers are not over are given up and left out.
    """
    stop: asyncio.Task[Any] = asyncio.create_task(stopping.wait())
    tasks: list[asyncio.Task[Any]] = []

    async def asked(offered: Offered) -> Asked:
        found = await ask(offered)
        on_ended(found)
        return found

    try:
        for offered in requests:
            due: asyncio.Task[Any] = asyncio.create_task(clock.until(offered.arrival.at_ms))
            await asyncio.wait({due, stop}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                due.cancel()
                break
            tasks.append(asyncio.create_task(asked(offered)))
        while (left := [task for task in tasks if not task.done()]) and not stop.done():
            await asyncio.wait({*left, stop}, return_when=asyncio.FIRST_COMPLETED)
        return [task.result() for task in tasks if task.done()]
    finally:
        stop.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(stop, *tasks, return_exceptions=True)
