"""The process of the controller: `sparktier controller`, which `sparktier up` also starts as a child."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import uvicorn

from sparktier.cluster.controller import Clocks, Controller, Lease, Place
from sparktier.cluster.policy.policy_types import PolicyConfig
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.errors import ArtifactError, ConfigError, Problem
from sparktier.configs.settings.settings import ControllerSettings, Settings
from sparktier.serving.clients.addresses import host_port, http_url, listening
from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.clients.replica_admin import ReplicaAdmin
from sparktier.serving.clients.replica_keys import Keys, bearer, keys_of
from sparktier.serving.clients.replica_list import read_replicas
from sparktier.serving.controller.decision_log import DecisionLog
from sparktier.serving.controller.file_lease import FileLease
from sparktier.serving.controller.kubernetes_lease import KubernetesLease
from sparktier.serving.controller.orders import Orders
from sparktier.serving.controller.policy_setup import policy_config, step_times
from sparktier.serving.controller.routes import routes

logger = logging.getLogger(__name__)


class Setup:
    """The operator's choices in force, and the replicas that the file at `replicas_file` lists.

    What can't be read leaves what was there before, and is logged.
    """

    def __init__(self, settings: Settings, replicas_file: Path, load: Callable[[], Settings], orders: Orders) -> None:
        self._replicas_file, self._load, self._orders = replicas_file, load, orders
        self._config: PolicyConfig = policy_config(settings)
        self._times: StepTimeModel | None = step_times(settings)
        self._places: Mapping[str, Place] = {}

    def reload(self) -> None:
        """Take the tiers of the configuration as it is now."""
        try:
            self._config = policy_config(self._load())
            logger.info("tiers of the configuration taken anew")
        except (ConfigError, ArtifactError, OSError) as error:
            logger.error("tiers not reloaded: %s", error)

    def places(self) -> Mapping[str, Place]:
        """Return where each replica is."""
        try:
            listed = read_replicas(self._replicas_file)
            self._places = {name: Place(each.url, each.state) for name, each in listed.items()}
        except ArtifactError as error:
            logger.warning("%s", error)
        return self._orders.applied(self._places)

    def policy(self) -> tuple[PolicyConfig, Mapping[str, StepTimeModel]]:
        """Return the operator's choices, and each replica's step times."""
        models = {} if self._times is None else dict.fromkeys(self._places, self._times)
        return self._config, models


def run(settings: Settings, *, replicas_file: Path, port: int | None, load: Callable[[], Settings]) -> int:
    """Steer the replicas of the list until SIGINT or SIGTERM and return the exit status; SIGHUP reloads tiers.

    Files that the settings don't name lie beside the list.

    Raises:
        ArtifactError: the list, the keys or the table of step times can't be read, or the log can't be written.
        ConfigError: the port is taken.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    read_replicas(replicas_file)
    keys = keys_of(os.environ)
    controller, folder = settings.controller, replicas_file.parent
    orders = Orders(folder / "orders.json")
    setup = Setup(settings, replicas_file, load, orders)
    log = DecisionLog(Path(controller.log_path or folder / "decisions.jsonl"), file_bytes=controller.log_bytes)
    try:
        with _listener(controller.host, port or controller.port or 0) as listener:
            asyncio.run(_serve(settings, setup, log, orders, folder, keys, listener))
    finally:
        log.close()
    return 0


@contextlib.asynccontextmanager
async def _lease(controller: ControllerSettings, folder: Path) -> AsyncIterator[Lease]:
    """The lease that the settings name; without one, a file in `folder`."""
    if controller.kubernetes_lease is None:
        yield FileLease(Path(controller.lease_path or folder / "controller.lease"))
        return
    from kubernetes_asyncio import client, config

    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config()  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config()
    except config.ConfigException as error:
        rule = f"needs a Kubernetes API server ({error})"
        cure = "Run it in a pod with a service account, set KUBECONFIG, or leave the key out for a lease in a file."
        raise ConfigError([Problem("controller.kubernetes_lease", rule, controller.kubernetes_lease, cure)]) from error
    namespace, name = controller.kubernetes_lease.split("/")
    async with client.ApiClient() as api:
        yield KubernetesLease(
            client.CoordinationV1Api(api),
            namespace=namespace,
            name=name,
            identity=f"{socket.gethostname()}-{os.getpid()}",
            # A plan's time and the lease's end together.
            seconds=max(2, round(controller.ttl_ms / 1000)),
            clock=time.monotonic,
        )


async def _serve(
    settings: Settings,
    setup: Setup,
    log: DecisionLog,
    orders: Orders,
    folder: Path,
    keys: Keys,
    listener: socket.socket,
) -> None:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, setup.reload)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncReplicaClient(bearer(keys.admin)) as client, _lease(settings.controller, folder) as lease:
        controller = Controller(
            ReplicaAdmin(client),
            lease,
            Clocks(_now_ms, _at_ms),
            setup.places,
            setup.policy,
            log,
            tick_ms=settings.controller.tick_ms,
        )
        server = _Server(
            uvicorn.Config(
                routes(controller, log, orders, admin_key=keys.admin),
                log_level="warning",
                lifespan="off",
                timeout_graceful_shutdown=1,
            )
        )
        host, port = listener.getsockname()[:2]
        print(f"controller serves on {http_url(host, port)}", flush=True)  # noqa: T201 - this is the command's output
        tasks = [asyncio.create_task(controller.run()), asyncio.create_task(server.serve(sockets=[listener]))]
        asked = asyncio.create_task(stopping.wait())
        await asyncio.wait({*tasks, asked}, return_when=asyncio.FIRST_COMPLETED)
        failures = [error for task in tasks if task.done() and (error := task.exception())]
        server.should_exit = True
        for task in (tasks[0], asked):
            task.cancel()
        await asyncio.wait({*tasks, asked})
        if failures:
            raise failures[0]


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to us."""
        yield


def _listener(host: str, port: int) -> socket.socket:
    try:
        return listening(host, port)
    except OSError as error:
        rule = f"must be an address this machine can listen on ({error.strerror})"
        cure = "Stop what listens there, or choose another port or host."
        raise ConfigError([Problem("controller.port", rule, host_port(host, port), cure)]) from error


def _now_ms() -> int:
    return round(time.monotonic() * 1000)


def _at_ms() -> int:
    return round(time.time() * 1000)
