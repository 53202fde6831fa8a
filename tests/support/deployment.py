"""A real `sparktier up` in a process of its own, for tests: started, waited for, asked, harmed and ended."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import yaml

from sparktier.configs.contracts.signals import Signals
from sparktier.serving.clients.addresses import http_url
from sparktier.serving.clients.replica_keys import Keys, bearer, read_keys
from support import replica_http
from support.engine_starts import STARTED
from support.processes import Family, command_line, described

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "test.yaml"
MODEL = "tiny"  # `served_name` of that file
CLIENT_KEY = "none"
"""What clients show where a deployment asks for keys."""
SHOWN = bearer(CLIENT_KEY)
THREE_TIERS: Mapping[int, Mapping[str, object]] = {
    0: {"name": "standard", "default": True},
    5: {"name": "gold", "promise_tok_s": 40.0},
    7: {"name": "lone"},
}
# What `sparktier up` promises after a stop signal, see design of the command line.
STOP_LIMIT_S = 15.0
READY_LIMIT_S = 540.0
_PORTS = range(8210, 8290)


class Deployment:
    """One running `sparktier up`. `settings` are values of `--set`, the rest is the file `config`; `env` is all the
    environment it has, where that is not the caller's own; `wrapper` is a command line that runs others."""

    def __init__(
        self,
        model: Path,
        output: Path,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        config: Path = CONFIG,
        **settings: object,
    ) -> None:
        self.config = config
        self.port = free_port()
        self.url = http_url(str(settings.get("server.host", "127.0.0.1")), self.port)
        self.grpc_address = f"127.0.0.1:{self.port + 500}"
        self.internal_url = http_url("127.0.0.1", self.port + 1000)
        self._output = output
        values = {"model.path": model, "server.port": self.port, "supervision.start_timeout_s": READY_LIMIT_S}
        self.values = {"model.path": model, **settings}
        options = [f"--set={key}={value}" for key, value in {**values, **settings}.items()]
        with output.open("wb") as log:
            self._process = subprocess.Popen(
                [*wrapper, sys.executable, "-m", "sparktier.serving.cli.main", "up", str(config), *options],
                cwd=ROOT,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        STARTED["deployment"] += 1
        self._family = Family(psutil.Process(self._process.pid))

    @property
    def output(self) -> str:
        """What the command has printed so far."""
        return self._output.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Pid of `sparktier up` itself."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """Exit status of `sparktier up`, or None while it runs."""
        return self._process.poll()

    def wait_for(self, text: str, *, timeout_s: float = READY_LIMIT_S) -> None:
        """Return once the command has printed `text`; fails when it ends before or takes longer."""

        def printed_or_ended() -> bool:
            return text in self.output or self._ended

        wait_until(printed_or_ended, timeout_s=timeout_s, what=lambda: f"{text!r} in:\n{self.output}")
        assert text in self.output, f"sparktier up ended with {self.exit_status}:\n{self.output}"

    def wait_until_all_serve(self) -> None:
        """Return once the command has said that every replica serves."""

        def said_or_ended() -> bool:
            return bool(re.search(r"^(\d+) of \1 replicas serve$", self.output, re.MULTILINE)) or self._ended

        wait_until(said_or_ended, timeout_s=READY_LIMIT_S, what=lambda: f"all replicas in:\n{self.output}")
        assert not self._ended, f"sparktier up ended with {self.exit_status}:\n{self.output}"

    def reload(self, said: str) -> str:
        """Have the command read its configuration again, and return what it prints until it has printed `said`."""
        before = len(self.output)
        self._process.send_signal(signal.SIGHUP)
        wait_until(lambda: said in self.output[before:] or self._ended, timeout_s=60.0, what=lambda: self.output)
        return self.output[before:]

    @property
    def _ended(self) -> bool:
        return self.exit_status is not None

    def client(self) -> openai.OpenAI:
        """Return OpenAI's client, which tries nothing twice."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=CLIENT_KEY, max_retries=0, timeout=180.0)

    def replica_url(self, number: int = 0) -> str:
        """Return where replica `number` last said it serves."""
        found = re.findall(rf"replica {number} serves on (\S+)", self.output)
        assert found, self.output
        return replica_http.remember(str(found[-1]), self.keys.admin)

    @property
    def keys_file(self) -> Path:
        """Where this run's keys are."""
        found = re.search(r"keys of the replicas' own ports in (.+)", self.output)
        assert found, self.output
        return Path(found[1])

    @property
    def keys(self) -> Keys:
        """What opens the replicas' own ports."""
        return read_keys(self.keys_file)

    @property
    def deployment_dir(self) -> Path:
        """The directory of this run: logs, settings, metrics."""
        found = re.search(r"logs in (\S+)", self.output)
        assert found, self.output
        return Path(found[1])

    def ranks(self, number: int = 0) -> list[dict[str, Any]]:
        """Return what the ranks of replica `number` report."""
        ranks: list[dict[str, Any]] = self._ask(number, "/sparktier/ranks").json()
        return ranks

    def rank_pids(self) -> list[int]:
        """Return the process ids of all ranks of the replicas that serve."""
        numbers = sorted(set(re.findall(r"replica (\d+) serves on", self.output)))
        return [int(rank["pid"]) for number in numbers for rank in self.ranks(int(number))]

    def running_requests(self, number: int = 0) -> int:
        """Return how many requests the engine of replica `number` holds, running or waiting."""
        # Not SGLang's /v1/loads: it shows the load of some steps ago, and of one who hung up the engine hears late.
        signals = Signals.model_validate_json(self._ask(number, "/sparktier/signals").content)
        return sum(sum(rank.running.values()) + sum(rank.queued.values()) for rank in signals.ranks)

    def answered_requests(self, number: int = 0) -> int:
        """Return how many requests the engine of replica `number` has answered so far."""
        samples = re.findall(
            r"^sglang:num_requests_total\{.*?\} (\S+)$", self._ask(number, "/metrics").text, re.MULTILINE
        )
        return round(sum(map(float, samples)))

    def _ask(self, number: int, path: str) -> httpx.Response:
        return replica_http.get(f"{self.replica_url(number)}{path}", timeout=30.0)

    def processes(self) -> list[psutil.Process]:
        """Return every living process of this deployment."""
        return self._family.living()

    def found(self, *words: str) -> list[psutil.Process]:
        """Return the living processes of this deployment whose command lines have all of `words`."""
        return [process for process in self.processes() if all(word in command_line(process) for word in words)]

    def process(self, *words: str) -> psutil.Process:
        """Return the one process of this deployment whose command line has all of `words`."""
        found = self.found(*words)
        assert len(found) == 1, f"{words}: {described(found)} among {described(self.processes())}"
        return found[0]

    def wait_until_answering(self, *, timeout_s: float = READY_LIMIT_S) -> None:
        """Return once the front says that a request would succeed, and one does."""
        wait_until(self._answers, timeout_s=timeout_s, what=lambda: f"an answer from:\n{self.output}")

    def _answers(self) -> bool:
        assert self.exit_status is None, self.output
        body = {"model": MODEL, "prompt": "Hello", "max_tokens": 2}
        with contextlib.suppress(httpx.HTTPError):
            return httpx.post(f"{self.url}/v1/completions", json=body, headers=SHOWN, timeout=60.0).status_code == 200
        return False

    def stop(self, number: signal.Signals = signal.SIGINT) -> float:
        """Send signal `number`, wait for the end, check that nothing is left, and return how many seconds it took."""
        self.processes()
        started = time.monotonic()
        self._process.send_signal(number)
        return self.wait_for_end(started=started)

    def wait_for_end(self, *, started: float, limit_s: float = STOP_LIMIT_S) -> float:
        """Wait until no process is left and return the seconds since `started`; fails after `limit_s`."""
        left = self._family.gone_within(limit_s)
        took_s = time.monotonic() - started
        assert not left, f"after {took_s:.1f} s: {described(left)}\n{self.output}"
        self._process.wait()
        return took_s

    def kill_all(self) -> None:
        """Kill whatever is left; for the end of a test that failed."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()


@contextlib.contextmanager
def deployed(
    model: Path,
    output: Path,
    env: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
    config: Path = CONFIG,
    **settings: object,
) -> Iterator[Deployment]:
    """Start a deployment, wait until it is ready, and end it with Ctrl-C, which has to leave nothing behind."""
    deployment = Deployment(model, output, env, wrapper, config, **settings)
    try:
        deployment.wait_for("ready http=")
        deployment.wait_until_all_serve()
        yield deployment
        if deployment.exit_status is None:
            deployment.stop()
    finally:
        deployment.kill_all()


def write_tiers(file: Path, tiers: Mapping[int, Mapping[str, object]]) -> Path:
    """Write `configs/test.yaml` with `tiers` to `file`, and return it."""
    file.write_text(
        CONFIG.read_text() + yaml.safe_dump({"tiers": {tier: dict(fields) for tier, fields in tiers.items()}})
    )
    return file


def wait_until(met: Callable[[], bool], *, timeout_s: float, what: Callable[[], str]) -> None:
    """Return once `met`; fails with `what` was waited for after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what()}"
        time.sleep(0.1)


def free_port() -> int:
    """Return a port outside the range that the system gives to connections: Ray and SGLang take theirs from there."""
    # A deployment listens some time after this look: runs beside each other on a machine start looking elsewhere.
    first = os.getpid() % len(_PORTS)
    for port in (*_PORTS[first:], *_PORTS[:first]):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")
