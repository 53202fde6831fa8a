"""Requests that are under way while a test harms the deployment, and how each of them ended."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import openai

from support.deployment import MODEL, Deployment, wait_until

# The codes with which the front ends a request whose replica fails or stops under it.
CLEAN_CODES = {"replica_lost", "engine_error", "stopping"}
_LONG = {"model": MODEL, "prompt": "ba be bi", "max_tokens": 480, "temperature": 1, "extra_body": {"ignore_eos": True}}


@dataclass
class InFlight:
    """What became of each request: None while it goes on, the error it ended with, or `"done"`."""

    outcomes: list[openai.APIError | str | None] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def assert_clean_ends(self, *, within_s: float) -> None:
        """Fail unless every request ends within `within_s` seconds, each with an error that says what happened."""
        deadline = time.monotonic() + within_s
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        ends = [getattr(outcome, "code", outcome) for outcome in self.outcomes]
        assert all(end in CLEAN_CODES for end in ends), self.outcomes


@contextlib.contextmanager
def in_flight(deployment: Deployment, *, streams: int = 2, plain: int = 2) -> Iterator[InFlight]:
    """Send long requests, and yield once the engines have all of them."""
    requests = InFlight()
    client = deployment.client()
    for work in [_stream] * streams + [_wait] * plain:
        number = len(requests.outcomes)
        requests.outcomes.append(None)
        requests.threads.append(threading.Thread(target=_run, args=(work, client, requests, number), daemon=True))
        requests.threads[-1].start()
    wait_until(
        lambda: deployment.running_requests() == streams + plain,
        timeout_s=60,
        what=lambda: f"{streams + plain} running requests: {requests.outcomes}",
    )
    yield requests


def _run(work: Callable[[openai.OpenAI], None], client: openai.OpenAI, requests: InFlight, number: int) -> None:
    try:
        work(client)
        requests.outcomes[number] = "done"
    except openai.APIError as error:
        requests.outcomes[number] = error


def _stream(client: openai.OpenAI) -> None:
    for _ in client.completions.create(**_LONG, stream=True):
        pass


def _wait(client: openai.OpenAI) -> None:
    client.completions.create(**_LONG)
