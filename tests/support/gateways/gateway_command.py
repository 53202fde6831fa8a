"""`sparktier gateway` as a process of its own before one replica, for tests."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparktier.serving.clients.replica_keys import KEYS_FILE_ENV
from sparktier.serving.clients.replica_list import Listed, write_replicas
from support.deployment import CONFIG, wait_until
from support.gateways.grpc_calls import free_port


class RunningGateway:
    """The command, once it serves. `values` are those of `--set`; `wrapper` is a command line that runs others."""

    def __init__(
        self,
        folder: Path,
        replica_url: str,
        keys_file: Path,
        config: Path,
        wrapper: Sequence[str],
        **values: object,
    ) -> None:
        replicas = folder / "replicas.json"
        write_replicas(replicas, {"0": Listed(url=replica_url)})
        self.output = folder / "output"
        self.ports = {name: free_port() for name in ("port", "grpc_port", "internal_port")}
        ports = {f"server.{name}": port for name, port in self.ports.items()}
        options = [f"--set={key}={value}" for key, value in (ports | values).items()]
        command = ["gateway", str(config), "--replicas", str(replicas), *options]
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [*wrapper, sys.executable, "-m", "sparktier.serving.cli.main", *command],
                env={**os.environ, KEYS_FILE_ENV: str(keys_file)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Return once it serves; fails when it ends before."""
        wait_until(
            lambda: "ready http=" in self.output.read_text() or self.process.poll() is not None,
            timeout_s=120,
            what=self.output.read_text,
        )
        assert self.process.poll() is None, self.output.read_text()

    def url(self, name: str = "port") -> str:
        """Return the address of a listener of HTTP."""
        return f"http://127.0.0.1:{self.ports[name]}"

    @property
    def grpc_address(self) -> str:
        """Where its gRPC listener is."""
        return f"127.0.0.1:{self.ports['grpc_port']}"


@contextlib.contextmanager
def running_gateway(
    folder: Path,
    replica_url: str,
    keys_file: Path,
    *,
    config: Path = CONFIG,
    wrapper: Sequence[str] = (),
    **values: object,
) -> Iterator[RunningGateway]:
    """Yield a gateway that serves, and kill it in the end."""
    running = RunningGateway(folder, replica_url, keys_file, config, wrapper, **values)
    try:
        running.wait()
        yield running
    finally:
        running.process.kill()
        running.process.wait()
