"""`sparktier decisions`: prints a controller's decisions in words, and goes on with those that come."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sparktier.configs.contracts.decision import Decision, Depth
from sparktier.configs.errors import ReplicaLost
from sparktier.serving.clients.controller_client import ControllerClient

_POLL_S = 1.0


def follow(client: ControllerClient, *, goes_on: bool, say: Callable[[str], None]) -> int:
    """Print what the log holds; with `goes_on`, what comes too, until interrupted. Returns the exit status.

    Raises:
        ReplicaError: the controller doesn't answer. One that is followed may be away for a while.
    """
    after, told_away = 0, False
    while True:
        try:
            lines, told_away = client.decisions(after=after), False
        except ReplicaLost as error:
            if not goes_on:
                raise
            lines = []
            if not told_away:
                say(f"the controller does not answer: {error}")
            told_away = True
        for line in lines:
            after = line["seq"]
            for text in in_words(line):
                say(text)
        if not goes_on:
            return 0
        time.sleep(_POLL_S)


def in_words(line: Mapping[str, Any]) -> Iterator[str]:
    """Yield the text of one line of the log."""
    if line["kind"] == "start":
        times = "with step times" if line["step_times"] else "without step times"
        yield f"epoch {line['epoch']} begins, {times}"
    elif line["kind"] == "state":
        yield f"{_clock(line['at_ms'])} {line['name']} is {line['state']}: {line['found']}"
    else:
        decision = Decision.model_validate(line["decision"], strict=False)
        changed = ", ".join(_changes(decision.before, decision.after))
        plan = f"plan {line['epoch']}.{line['version']}"
        yield f"{_clock(decision.at_ms)} {decision.replica_id} {changed} ({plan}): {decision.reason}"


def _changes(before: Depth, after: Depth) -> Iterator[str]:
    for name in ("state", "rung", "rows"):
        was, now = getattr(before, name), getattr(after, name)
        if was != now:
            yield f"{name} {was} -> {now}"
    if before.caps != after.caps:
        users = {tier: "any" if cap is None else cap for tier, cap in sorted(after.caps.items())}
        yield "users " + ", ".join(f"{tier}: {cap}" for tier, cap in users.items())


def _clock(at_ms: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at_ms / 1000.0))
