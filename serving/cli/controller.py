"""The arguments of the commands that steer a cluster: `controller`, `decisions`, `latch` and `resume`."""

import argparse
import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sparktier.configs.errors import ReplicaError
from sparktier.serving.cli.options import add_config, configured, whole_number

if TYPE_CHECKING:
    from sparktier.serving.clients.replica_keys import Keys

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add `controller`, `decisions`, `latch` and `resume`."""
    controller = add(
        "controller",
        _controller,
        "Steer depth and caps of the replicas of a list, by tier; `up` starts one.",
        "sparktier controller my-deployment.yaml --replicas replicas.json",
    )
    add_config(controller)
    controller.add_argument(
        "--replicas", type=Path, required=True, metavar="FILE", help="JSON list of replicas with their addresses"
    )
    controller.add_argument("--port", type=whole_number(1, 65535), help="port of its routes, in place of the file's")
    decisions = add(
        "decisions",
        _decisions,
        "Show what a controller has decided, and why.",
        "sparktier decisions --url http://127.0.0.1:9000 --keys keys.json --follow",
    )
    decisions.add_argument("--url", required=True, help="address that the controller prints")
    _add_keys(decisions)
    decisions.add_argument("--follow", action="store_true", help="go on with those that come, until Ctrl-C")
    _add_latch(add, "latch", "Switch a replica's speculation off, whatever plans say, until `resume`.")
    _add_latch(add, "resume", "Let plans decide again on a replica that was latched off.")


def _add_keys(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--keys", type=Path, metavar="FILE", help="keys file of the run; without it the one of SPARKTIER_KEYS_FILE"
    )


def _add_latch(add: Add, name: str, text: str) -> None:
    command = add(name, _latch, text, f"sparktier {name} --url http://127.0.0.1:41000 --keys keys.json --reason drill")
    command.add_argument("--url", required=True, help="address of the replica's own port")
    _add_keys(command)
    command.add_argument("--actor", default=_user(), help="who orders it, for the log; you by default")
    command.add_argument("--reason", default="", help="why, for the log")
    command.set_defaults(latched=name == "latch")


def _user() -> str:
    return os.environ.get("USER") or f"uid {os.getuid()}"


def _latch(options: argparse.Namespace) -> int:
    from sparktier.configs.contracts.latch import LatchOrder
    from sparktier.serving.clients.replica import AsyncReplicaClient
    from sparktier.serving.clients.replica_admin import ReplicaAdmin
    from sparktier.serving.clients.replica_keys import bearer

    order = LatchOrder(latched=options.latched, actor=options.actor, reason=options.reason)

    async def ordered() -> str | None:
        async with AsyncReplicaClient(bearer(_keys(options).admin)) as client:
            return await ReplicaAdmin(client).latch(options.url, order)

    if (refused := asyncio.run(ordered())) is not None:
        raise ReplicaError(f"A replica must take the order (it refused: {refused}).")
    print("latched off" if options.latched else "resumed", flush=True)  # noqa: T201 - this is the command's output
    return 0


def _keys(options: argparse.Namespace) -> "Keys":
    from sparktier.serving.clients.replica_keys import keys_of, read_keys

    return read_keys(options.keys) if options.keys else keys_of(os.environ)


def _controller(options: argparse.Namespace) -> int:
    settings = configured(options)
    from sparktier.serving.controller.process import run

    return run(settings, replicas_file=options.replicas, port=options.port, load=lambda: configured(options))


def _decisions(options: argparse.Namespace) -> int:
    from sparktier.serving.clients.controller_client import ControllerClient
    from sparktier.serving.controller.follow import follow

    client = ControllerClient(options.url, key=_keys(options).admin)
    return follow(client, goes_on=options.follow, say=lambda text: print(text, flush=True))  # noqa: T201
