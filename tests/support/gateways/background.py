"""An asynchronous context that stays open in a thread, for tests that block."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

Yielded = TypeVar("Yielded")
_LIMIT_S = 60


@contextlib.contextmanager
def in_background(context: AbstractAsyncContextManager[Yielded]) -> Iterator[Yielded]:
    """Yield what `context` yields, while an event loop of its own runs it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(_LIMIT_S)
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(_LIMIT_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_LIMIT_S)
        loop.close()
