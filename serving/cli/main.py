"""The `sparktier` command: parses arguments, loads settings, runs a command, and prints its errors.

Each command imports its work when it runs, so that `--help` and a wrong file are answered at once.

Exit codes: 0 done, 1 a check or a replica failed, 2 bad input, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import NoReturn

from sparktier.configs.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    ArtifactError,
    ConfigError,
    SparktierError,
    UpstreamError,
)
from sparktier.configs.settings.settings import Settings
from sparktier.serving.cli import bench as bench_cli
from sparktier.serving.cli import controller as controller_cli
from sparktier.serving.cli import drafter as drafter_cli
from sparktier.serving.cli import simulate as simulate_cli
from sparktier.serving.cli import usage as usage_cli
from sparktier.serving.cli.options import add_config, add_json, add_verb, configured, real_number, whole_number
from sparktier.serving.engine.upstream.check import require_version

EXIT_INTERRUPTED = 130
_DEMO = Path(str(resources.files("sparktier.configs").joinpath("demo.yaml")))
_BAD_INPUT = (ConfigError, UpstreamError, ArtifactError)

Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """argparse with errors in one line, like all our errors."""

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit."""
        _complain(f"{message} (see {self.prog} --help)")
        raise SystemExit(EXIT_BAD_INPUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (of this process when None) and return its exit code."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        return command(options)
    except ConfigError as error:
        for problem in error.problems:
            _complain(f"{options.config}: {problem}")
        return EXIT_BAD_INPUT
    except SparktierError as error:
        _complain(str(error))
        return EXIT_BAD_INPUT if isinstance(error, _BAD_INPUT) else EXIT_FAILED
    except BrokenPipeError:
        # The reader of our output has gone. Without this, Python would print an error of that at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        place = error.filename or "this machine"
        _complain(
            f"{place}: must be usable (found {error.strerror or error}). Check the path, its rights and its disk."
        )
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _complain(text: str) -> None:
    print("sparktier: " + " ".join(text.split()), file=sys.stderr)


def _up(options: argparse.Namespace) -> int:
    settings = _settings_to_run(options)
    from sparktier.serving.supervision.up import run

    return run(settings, reload=lambda: configured(options))


def _demo(options: argparse.Namespace) -> int:
    settings = _settings_to_run(options)
    from sparktier.serving.bench.demo_start import run

    run(settings, config=options.config, overrides=options.set)


def _engine(options: argparse.Namespace) -> int:
    settings = _settings_to_run(options)
    from sparktier.serving.supervision.replica_process import run

    return run(
        settings, replica=options.replica, host=options.host, port=options.port, ranks_within_s=options.ranks_within_s
    )


def _gateway(options: argparse.Namespace) -> int:
    settings = configured(options)
    from sparktier.serving.gateway.standalone.process import run

    return run(settings, replicas_file=options.replicas, reload=lambda: configured(options))


def _doctor(options: argparse.Namespace) -> int:
    settings = configured(options)
    from sparktier.serving.cli import doctor as doctor_command

    if options.plan:
        return doctor_command.plan(
            settings, model_config=options.model_config, draft_config=options.draft_config, report=options.json
        )
    return doctor_command.examine(settings, report=options.json)


def _key(options: argparse.Namespace) -> int:
    settings = configured(options)
    from sparktier.serving.gateway.tenants.keys import keyed_hash, new_key, read_pepper

    pepper = read_pepper(settings.gateway.pepper_file, os.environ)
    key = new_key()
    print(f"key, shown this once: {key}\nline for the keys file: {keyed_hash(pepper, key)}")
    return 0


def _settings_to_run(options: argparse.Namespace) -> Settings:
    """Return the settings, once they and the installed SGLang are known to be what we can run."""
    settings = configured(options)
    require_version()
    return settings


def _add_engine(add: Callable[[str, Command, str, str], argparse.ArgumentParser]) -> None:
    engine = add(
        "engine",
        _engine,
        "Run one replica of a configuration; `up` starts these.",
        "sparktier engine configs/demo.yaml --replica 0 --port 30000",
    )
    add_config(engine)
    engine.add_argument("--replica", type=whole_number(0, 1023), required=True, help="number of the replica, from 0")
    engine.add_argument("--port", type=whole_number(1, 65535), required=True, help="port of its HTTP server")
    engine.add_argument("--host", default="127.0.0.1", help="address of its HTTP server (default 127.0.0.1)")
    engine.add_argument(
        "--ranks-within-s",
        type=real_number(0),
        default=60.0,
        help="seconds to wait for the GPUs of its ranks (default 60)",
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sparktier", description="Serve a large mixture-of-experts model at the speed each user's tier promises."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add = partial(add_verb, commands)
    up = add(
        "up", _up, "Serve a configuration in the foreground.", "sparktier up configs/demo.yaml --set server.port=9000"
    )
    add_config(up)

    demo = add(
        "demo",
        _demo,
        "Serve the demo model, with promises that this machine can keep; the first start measures it.",
        "sparktier demo --set server.port=9000",
    )
    add_config(demo, default=_DEMO)
    _add_engine(add)
    gateway = add(
        "gateway",
        _gateway,
        "Serve clients before the replicas of a list; `up` has one of its own.",
        "SPARKTIER_KEYS_FILE=keys.json sparktier gateway my-deployment.yaml --replicas replicas.json",
    )
    add_config(gateway)
    gateway.add_argument(
        "--replicas", type=Path, required=True, metavar="FILE", help="JSON list of replicas with their addresses"
    )
    doctor = add(
        "doctor",
        _doctor,
        "Check this machine for a configuration, or show what a deployment would do.",
        "sparktier doctor --plan configs/deployments/qwen3-235b-a22b-8xh200.yaml",
    )
    add_config(doctor, default=_DEMO)
    doctor.add_argument(
        "--plan", action="store_true", help="show arguments, memory and placement instead; needs no GPU"
    )
    doctor.add_argument("--model-config", type=Path, metavar="PATH", help="config.json of a model that is not at hand")
    doctor.add_argument("--draft-config", type=Path, metavar="PATH", help="config.json of a draft that is not at hand")
    add_json(doctor)
    key = add("key", _key, "Make a key for a client of a configuration.", "sparktier key my-deployment.yaml")
    add_config(key)
    usage_cli.add_arguments(
        add("usage", usage_cli.run, "Sum the log of use.", "sparktier usage my-deployment.yaml --by tenant,tier")
    )
    drafter_cli.add_commands(add)
    bench_cli.add_commands(add)
    controller_cli.add_commands(add)
    simulate_cli.add_commands(add)
    return parser


if __name__ == "__main__":
    sys.exit(main())
