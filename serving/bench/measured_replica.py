"""The deployment that a benchmark measures: starts `sparktier up` and talks to its first replica's own port."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.signals import Signals
from sparktier.configs.errors import ReplicaError, ReplicaLost
from sparktier.serving.bench.counters import Totals, totals_in
from sparktier.serving.clients.operator_plan import operator_plan
from sparktier.serving.clients.replica import OK, ReplicaAnswer, ReplicaClient
from sparktier.serving.clients.replica_keys import bearer, read_keys
from sparktier.serving.supervision.processes import spawn

_POLL_S = 0.2
_REQUEST_TIMEOUT_S = 600.0
_END_TIMEOUT_S = 30.0
_ALL_SERVE = re.compile(r"^(\d+) of \1 replicas serve$", re.MULTILINE)


class MeasuredReplica:
    """A replica at the address of its own port, with the admin key."""

    def __init__(self, url: str, *, key: str) -> None:
        self._url = url
        self._client = ReplicaClient(url, bearer(key), timeout_s=_REQUEST_TIMEOUT_S)

    def answer(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> int:
        """Answer one chat prompt and return how many tokens the answer has."""
        completion = self.chat(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
        return int(completion["usage"]["completion_tokens"])

    def chat(self, prompt: str, **parameters: float) -> dict[str, Any]:
        """Return the OpenAI chat completion of one prompt.

        Raises:
            ReplicaError: the replica refused the prompt or did not answer.
        """
        messages = [{"role": "user", "content": prompt}]
        request = {"model": "default", "messages": messages, **parameters}
        answer = self._ask("POST", "/v1/chat/completions", json=request)
        if answer.status != OK:
            found = f"HTTP {answer.status}: {answer.text:.300}"
            raise ReplicaError(f"The replica must answer a prompt (found {found}). Its log has the reason.")
        body: dict[str, Any] = json.loads(answer.content)
        return body

    def abort_all(self) -> None:
        """End every request that is running."""
        self._ask("POST", "/abort_request", json={"abort_all": True})

    def set_plan(self, *, rung: int, rows: int = 0) -> None:
        """Put every rank on `rung`, with at most `rows` rows a step (0: no bound); tiers stay as they are.

        Raises:
            ReplicaError: a rank refused the plan.
        """
        now_ms = round(time.time() * 1000)
        plan = operator_plan(self._signals(), url=self._url, now_ms=now_ms, rung=rung, rows=rows)
        answer = self._ask("POST", "/sparktier/plan", json=plan.model_dump(mode="json"))
        if answer.status != OK:
            raise ReplicaError(f"Every rank must take the plan for rung {rung} (found {answer.text:.300}).")

    def _signals(self) -> Signals:
        answer = self._ask("GET", "/sparktier/signals")
        if answer.status != OK:
            raise ReplicaError(f"The replica must say what it runs (found {answer.text:.300}).")
        return read_message(Signals, answer.content)

    def totals(self) -> Totals:
        """Read the current counters.

        Raises:
            ReplicaError: a rank did not answer in time.
        """
        answer = self._ask("GET", "/sparktier/metrics")
        if answer.status != OK:
            found = f"HTTP {answer.status}: {answer.text:.300}"
            raise ReplicaError(f"The replica must tell its counters (found {found}). Its log has the reason.")
        return totals_in(answer.text)

    def _ask(self, method: str, path: str, **content: Any) -> ReplicaAnswer:
        try:
            return self._client.ask(method, path, **content)
        except ReplicaLost as error:
            raise ReplicaError(f"The replica must answer {path} (found {error}). Its log has the reason.") from None


@contextmanager
def deployed(config: Path, overrides: Sequence[str]) -> Iterator[MeasuredReplica]:
    """Serve `config` with `overrides` (those of `--set`) while the body runs.

    Raises:
        ReplicaError: the deployment ended before it was ready; the message has its last line.
    """
    # Depth is the benchmark's to set: a controller's plans would shut it out.
    with started(config, (*overrides, "controller.enabled=false")) as output:
        yield first_replica(output)


@contextmanager
def started(config: Path, overrides: Sequence[str]) -> Iterator[str]:
    """Serve `config` with `overrides` while the body runs, and yield what `sparktier up` printed until all serve.

    Raises:
        ReplicaError: the deployment ended before it was ready; the message has its last line.
    """
    with TemporaryDirectory(prefix="sparktier-bench-") as folder:
        log = Path(folder) / "up.log"
        options = [f"--set={override}" for override in overrides]
        command = [sys.executable, "-m", "sparktier.serving.cli.main", "up", str(config), *options]
        process = spawn(command, log_file=log, env={})
        try:
            yield _ready(process, log)
        finally:
            process.terminate()
            process.wait(_END_TIMEOUT_S)


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the whole deployment serves and return what it printed."""
    # A replica that is still starting would slow the measured one.
    while not _ALL_SERVE.search(text := log.read_text(errors="replace")):
        if process.poll() is not None:
            raise ReplicaError(f"The deployment must become ready (it ended with: {_last_line(text)}).")
        time.sleep(_POLL_S)
    return text


def first_replica(output: str) -> MeasuredReplica:
    """Return the first replica of a deployment, by what `sparktier up` printed."""
    url = re.findall(r"^replica 0 serves on (\S+)$", output, re.MULTILINE)[-1]
    keys = re.findall(r"^keys of the replicas' own ports in (.+)$", output, re.MULTILINE)[-1]
    return MeasuredReplica(url, key=read_keys(Path(keys)).admin)


def front_url(output: str) -> str:
    """Return the address of a deployment's HTTP front, by what `sparktier up` printed."""
    return str(re.findall(r"^ready http=(\S+)", output, re.MULTILINE)[-1])


def _last_line(text: str) -> Any:
    return (text.strip().splitlines() or ["no output"])[-1]
