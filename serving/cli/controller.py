"""The arguments of the commands that steer a cluster: `controller` and `decisions`."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from sparktier.serving.cli.options import add_config, configured, whole_number

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add `controller` and `decisions`."""
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
    decisions.add_argument(
        "--keys", type=Path, metavar="FILE", help="keys file of the run; without it the one of SPARKTIER_KEYS_FILE"
    )
    decisions.add_argument("--follow", action="store_true", help="go on with those that come, until Ctrl-C")


def _controller(options: argparse.Namespace) -> int:
    settings = configured(options)
    from sparktier.serving.controller.process import run

    return run(settings, replicas_file=options.replicas, port=options.port, load=lambda: configured(options))


def _decisions(options: argparse.Namespace) -> int:
    from sparktier.serving.clients.controller_client import ControllerClient
    from sparktier.serving.clients.replica_keys import keys_of, read_keys
    from sparktier.serving.controller.follow import follow

    keys = read_keys(options.keys) if options.keys else keys_of(os.environ)
    client = ControllerClient(options.url, key=keys.admin)
    return follow(client, goes_on=options.follow, say=lambda text: print(text, flush=True))  # noqa: T201
