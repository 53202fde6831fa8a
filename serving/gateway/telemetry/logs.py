"""The log of the gateway's process: a line for each record, JSON unless a person reads it at a terminal.

A thread writes it, so that a reader who is slow or gone holds no request up; what doesn't fit meanwhile is dropped.
"""

import contextlib
import logging
import queue
from collections.abc import Iterator
from logging.handlers import QueueHandler, QueueListener
from typing import Any, TextIO

import structlog

_MOST_WAITING = 10_000
_LONGEST_STOP_S = 1.0
_ROOT = "sparktier"


class _Writer(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """Go on where the stream can't be written; the name is that of `logging`."""


class _Sender(QueueHandler):
    def prepare(self, record: logging.LogRecord) -> Any:
        """Hand over the record as it is: the writer's thread formats it."""
        return record

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop what doesn't fit."""


class _Listener(QueueListener):
    def __init__(self, waiting: "queue.Queue[logging.LogRecord | None]", writer: logging.Handler) -> None:
        super().__init__(waiting, writer)
        self._waiting = waiting

    def stop(self) -> None:
        """End the thread once it has written what waits, unless the reader is too slow."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=_LONGEST_STOP_S)
        if self._thread is not None:
            self._thread.join(_LONGEST_STOP_S)


@contextlib.contextmanager
def logging_to(stream: TextIO) -> Iterator[None]:
    """Write the records of our loggers, and of libraries' warnings, to `stream` while the body runs."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    writer = _Writer(stream)
    writer.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(is_terminal=stream.isatty()),
            ],
        )
    )
    waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(_MOST_WAITING)
    listener = _Listener(waiting, writer)
    root, ours, sender = logging.getLogger(), logging.getLogger(_ROOT), _Sender(waiting)
    levels = root.level, ours.level
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.INFO)
    root.addHandler(sender)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(sender)
        listener.stop()
        root.setLevel(levels[0])
        ours.setLevel(levels[1])


def _rendering(*, is_terminal: bool) -> list[Any]:
    if is_terminal:
        # The renderer's own form of an exception shows local variables, prompts among them.
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
