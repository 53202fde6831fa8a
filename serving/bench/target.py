"""The deployment under measurement: `sparktier up` as a child of ours, and its first replica's own port."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from sparktier.configs.errors import ReplicaError, ReplicaLost
from sparktier.serving.clients.replica import OK, ReplicaAnswer, ReplicaClient
from sparktier.serving.clients.replica_keys import bearer, read_keys
from sparktier.serving.supervision.processes import spawn

_POLL_S = 0.2
_REQUEST_TIMEOUT_S = 600.0
_END_TIMEOUT_S = 30.0
_RIVALS = 5
_ALL_SERVE = re.compile(r"^(\d+) of \1 replicas serve$", re.MULTILINE)


@dataclass(frozen=True)
class Totals:
    """A replica's counters since it started: decode steps, their time by part, rounds, rows verified, tokens."""

    steps: float
    rounds: float
    rows: float
    tokens: float
    part_ms: Mapping[str, float]

    @property
    def step_ms(self) -> float:
        """Mean time of a decode step."""
        return sum(self.part_ms.values()) / self.steps

    @property
    def users(self) -> float:
        """Mean number of requests in a decode step."""
        return self.rounds / self.steps

    @property
    def round_tokens(self) -> float:
        """Mean number of tokens that a request gets of a step: the accepted length."""
        return self.tokens / self.rounds

    def since(self, before: "Totals") -> "Totals":
        """Return what was added after `before`."""
        parts = {part: ms - before.part_ms.get(part, 0.0) for part, ms in self.part_ms.items()}
        counts = (self.steps - before.steps, self.rounds - before.rounds, self.rows - before.rows)
        return Totals(*counts, self.tokens - before.tokens, parts)


class Choice(NamedTuple):
    """A token of an answer, and the log probabilities of the likeliest tokens at its place, itself among them."""

    token: str
    logprobs: Mapping[str, float]


class Target:
    """A replica, by the address of its own port and the key that opens it."""

    def __init__(self, url: str, *, key: str) -> None:
        self._client = ReplicaClient(url, bearer(key), timeout_s=_REQUEST_TIMEOUT_S)

    def answer(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> int:
        """Answer one chat prompt and return how many tokens came."""
        found = self._chat(prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
        return int(found["usage"]["completion_tokens"])

    def choices(self, prompt: str, *, tokens: int) -> list[Choice]:
        """Answer one chat prompt greedily with `tokens` tokens, whatever they are; return each beside its rivals."""
        asked = {
            "max_tokens": tokens,
            "temperature": 0.0,
            "logprobs": True,
            "top_logprobs": _RIVALS,
            "ignore_eos": True,
        }
        found = self._chat(prompt, **asked)["choices"][0]["logprobs"]["content"]
        return [Choice(one["token"], {top["token"]: top["logprob"] for top in one["top_logprobs"]}) for one in found]

    def _chat(self, prompt: str, **parameters: float) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        asked = {"model": "default", "messages": messages, **parameters}
        answer = self._ask("POST", "/v1/chat/completions", json=asked)
        if answer.status != OK:
            found = f"HTTP {answer.status}: {answer.text:.300}"
            raise ReplicaError(f"The replica must answer a prompt (found {found}). Its log has the reason.")
        body: dict[str, Any] = json.loads(answer.content)
        return body

    def set_plan(self, **keys: float) -> None:
        """Put plan keys (without their prefix) in force on every rank.

        Raises:
            ReplicaError: a rank refused them.
        """
        named = {f"sparktier_{key}": value for key, value in keys.items()}
        answer = self._ask("POST", "/set_internal_state", json={"server_args": named})
        if answer.status != OK or not all(json.loads(answer.content)):
            raise ReplicaError(
                f"Every rank must take the plan {named} (found {answer.text:.300}). See the replica's log."
            )

    def totals(self) -> Totals:
        """Read the counters as they stand."""
        return totals_in(self._ask("GET", "/sparktier/metrics").text)

    def _ask(self, method: str, path: str, **content: Any) -> ReplicaAnswer:
        try:
            return self._client.ask(method, path, **content)
        except ReplicaLost as error:
            raise ReplicaError(f"The replica must answer {path} (found {error}). Its log has the reason.") from None


def totals_in(page: str) -> Totals:
    """Return the counters on a page of metrics in Prometheus' text form, all attention groups and tiers together."""
    sums: dict[str, float] = {}
    parts: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "sparktier_decode_ms_total":
                part = sample.labels["part"]
                parts[part] = parts.get(part, 0.0) + sample.value
            elif sample.name.startswith("sparktier_"):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value

    def total(name: str) -> float:
        return sums.get(f"sparktier_{name}_total", 0.0)

    return Totals(total("decode_steps"), total("rounds"), total("rows_verified"), total("round_tokens"), parts)


@contextmanager
def deployed(config: Path, overrides: Sequence[str]) -> Iterator[Target]:
    """Serve `config` with `overrides` (as of `--set`) while the body runs.

    Raises:
        ReplicaError: it ended before it was ready; its last line is in the message.
    """
    with TemporaryDirectory(prefix="sparktier-bench-") as folder:
        log = Path(folder) / "up.log"
        options = [f"--set={override}" for override in overrides]
        command = [sys.executable, "-m", "sparktier.serving.cli.main", "up", str(config), *options]
        process = spawn(command, log=log, env={})
        try:
            yield target_in(_ready(process, log))
        finally:
            process.terminate()
            process.wait(_END_TIMEOUT_S)


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the whole deployment serves and return what it printed."""
    # A replica that is still starting takes time from those that are measured.
    while not _ALL_SERVE.search(text := log.read_text(errors="replace")):
        if process.poll() is not None:
            raise ReplicaError(f"The deployment must become ready (it ended with: {_last_line(text)}).")
        time.sleep(_POLL_S)
    return text


def target_in(output: str) -> Target:
    """Return the first replica of a deployment that has printed `output`."""
    url = re.findall(r"^replica 0 serves on (\S+)$", output, re.MULTILINE)[-1]
    keys = re.findall(r"^keys of the replicas' own ports in (.+)$", output, re.MULTILINE)[-1]
    return Target(url, key=read_keys(Path(keys)).admin)


def _last_line(text: str) -> Any:
    return (text.strip().splitlines() or ["no output"])[-1]
