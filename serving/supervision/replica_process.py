"""The process of one replica: joins Ray, reserves its ranks, and serves SGLang's OpenAI API on a port of its own.

`sparktier engine` runs it. `sparktier up` starts it with a settings file that leaves nothing open.
"""

import atexit
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_TRACES_ENDPOINT

from sparktier.cluster.placement import RankBundles, join_cluster, reserve
from sparktier.configs.errors import ConfigError, Problem, ReplicaError
from sparktier.configs.settings.settings import Settings
from sparktier.serving.clients.addresses import no_proxy_env
from sparktier.serving.clients.replica_keys import KEYS_FILE_ENV, Keys, keys_of, new_keys_file
from sparktier.serving.deployment.engine_args import engine_environment, engine_kwargs, rank_options_of
from sparktier.serving.deployment.resolved import Resolved, resolve
from sparktier.serving.engine.rank_options import DEFAULT_RUNNING_REQUESTS
from sparktier.serving.supervision.deployment_dir import METRICS_DIR_ENV

EXIT_NOT_STARTED = 69
# The ranks of a dead replica give their GPUs back within seconds; in a cluster that is too small none come free.
RANKS_WITHIN_S = 60.0
_MODEL_PACKAGE = "sparktier.serving.engine.models"


def run(
    settings: Settings,
    *,
    replica: int,
    port: int,
    host: str = "127.0.0.1",
    ranks_within_s: float = RANKS_WITHIN_S,
) -> int:
    """Serve replica number `replica` on `host` and `port` until told to stop, and return the exit status.

    The settings are resolved on this node. A file that `sparktier up` wrote resolves to what it found. Nodes of a
    cluster that has just started may join for as long as `ranks_within_s`.

    Raises ConfigError when the settings don't fit the device or name no cluster, ArtifactError when there is no model.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    keys = _keys()
    try:
        resolved = resolve(settings)
        # Imported before Ray so that this process's own SGLang sees the same environment as the ranks.
        env = {**rank_env(resolved), **_metrics_env()}
        os.environ.update(no_proxy_env(os.environ) | env)
        node = join_cluster(_address(settings), namespace=f"sparktier-{replica}", rank_env=env)
        shape = RankBundles(ranks=settings.replicas.tensor_parallel, nodes=settings.replicas.nodes)
        group = reserve(shape, first_node=node, timeout_s=ranks_within_s)
        from sparktier.serving.engine.launch import serve
        from sparktier.serving.engine.room import starting_room

        serve(
            {**engine_kwargs(resolved, replica=replica), "host": host, "port": port},
            keys=keys,
            replica_id=f"replica-{replica}",
            room=starting_room(
                settings.tiers,
                default_tier=settings.default_tier,
                running=settings.replicas.max_running_requests or DEFAULT_RUNNING_REQUESTS,
            ),
            group=group,
            on_started=lambda: logging.info("replica %d serves", replica),
        )
    except (ReplicaError, OSError) as error:
        if isinstance(error, OSError):
            # A full disk, too many open files, a late rank: unlike after a bad setting, another start may succeed.
            logging.exception("the system refused what this replica needs")
        print(f"replica {replica}: {error}", file=sys.stderr)  # noqa: T201 - the last line of this process's log
        return EXIT_NOT_STARTED
    return 0


def _address(settings: Settings) -> str:
    """Return the configured cluster's address, or that of the one `sparktier up` started."""
    address = settings.ray.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        rule = "must name a Ray cluster where `sparktier up` starts none"
        raise ConfigError([Problem("ray.address", rule, "null", "Set it to auto or host:port, or use `sparktier up`.")])
    return address


def rank_env(resolved: Resolved) -> dict[str, str]:
    """Return the environment of every rank, and of the process that starts them."""
    settings = resolved.settings
    operator = {name: value for name, value in os.environ.items() if name.startswith(("SGLANG_", "NCCL_"))}
    env = {
        **operator,
        **engine_environment(resolved),
        "SGLANG_EXTERNAL_MODEL_PACKAGE": _MODEL_PACKAGE,
        **rank_options_of(resolved).environment(),
    }
    if settings.telemetry.otlp_endpoint is not None:
        env[OTEL_EXPORTER_OTLP_TRACES_ENDPOINT] = settings.telemetry.otlp_endpoint
    if resolved.device == "cpu":
        # SGLang compiles a few small functions. On a CPU that takes 30 s of every start, needs a C++ compiler, and
        # makes no step measurably faster.
        env["TORCHDYNAMO_DISABLE"] = "1"
        env["SPARKTIER_RANKS_ON_NODE"] = str(_ranks_on_node(settings))
    return env


def _keys() -> Keys:
    """Return the keys of the run that this process is told of, or new ones in a file that the log names."""
    if KEYS_FILE_ENV not in os.environ:
        directory = tempfile.mkdtemp(prefix="sparktier-keys-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        os.environ[KEYS_FILE_ENV] = str(new_keys_file(Path(directory)))
        logging.info("keys of this replica's port in %s", os.environ[KEYS_FILE_ENV])
    return keys_of(os.environ)


def _metrics_env() -> dict[str, str]:
    """Return where this process and its ranks put SGLang's metrics; SGLang's own choice would not reach the ranks.

    `sparktier up` names a folder of its run, because a process that lost a rank or was killed can't clean up. A process
    that was started by hand makes a folder, and removes it at its end.
    """
    directory = os.environ.get(METRICS_DIR_ENV)
    if not directory:
        directory = tempfile.mkdtemp(prefix="sparktier-metrics-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return {METRICS_DIR_ENV: directory}


def _ranks_on_node(settings: Settings) -> int:
    """Return how many ranks share a node's cores: those of all replicas in a local cluster, of one in a joined one."""
    of_one = settings.replicas.tensor_parallel // settings.replicas.nodes
    return of_one * (settings.replicas.count if settings.ray.address is None else 1)
