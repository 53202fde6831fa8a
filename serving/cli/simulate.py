"""The arguments of `simulate` and `plan`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from sparktier.serving.cli.options import add_json, fraction, real_number, whole_number, writable_path

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add `simulate` and `plan`."""
    simulate = add(
        "simulate",
        _simulate,
        "Simulate a cluster under a trace: what each policy gives each tier.",
        "sparktier simulate configs/sim-v4-flash.yaml --trace conv.csv --json out/sim.json --plot out/sim.png",
    )
    _add_config(simulate)
    simulate.add_argument("--trace", type=Path, required=True, metavar="FILE", help="Azure's, Mooncake's or BurstGPT's")
    simulate.add_argument("--load", type=real_number(0.001), action="append", help="in place of the file's; repeatable")
    simulate.add_argument("--policy", action="append", help="in place of the file's; repeatable")
    simulate.add_argument(
        "--seed", type=whole_number(0, 2**31 - 1), action="append", help="in place of the file's; repeatable"
    )
    simulate.add_argument("--replicas", type=whole_number(1, 4096), help="in place of the file's")
    add_json(simulate)
    simulate.add_argument("--plot", type=writable_path, metavar="PATH", help="PNG of throughput and promises kept")
    plan = add(
        "plan",
        _plan,
        "Find the smallest cluster that keeps the promises of a traffic, by simulation.",
        "sparktier plan configs/sim-v4-flash.yaml --traffic conv.csv --rate 40 --attain 0.99",
    )
    _add_config(plan)
    plan.add_argument("--traffic", type=Path, required=True, metavar="FILE", help="Azure's, Mooncake's or BurstGPT's")
    plan.add_argument("--rate", type=real_number(0.001), help="requests a second in all (default: the trace's)")
    plan.add_argument("--attain", type=fraction, default=0.99, help="of every tier's promises (default 0.99)")
    plan.add_argument("--most", type=whole_number(1, 4096), default=64, help="replicas at most (default 64)")
    add_json(plan)


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=Path, metavar="CONFIG", help="YAML file of the cluster, see docs/capacity.md")


def _simulate(options: argparse.Namespace) -> int:
    from sparktier.serving.bench.simulate.command import run
    from sparktier.serving.bench.simulate.settings import load_simulate_settings

    settings = load_simulate_settings(options.config)
    asked = {"loads": options.load, "policies": options.policy, "seeds": options.seed}
    changes = {name: tuple(values) for name, values in asked.items() if values}
    if options.replicas:
        changes["replicas"] = options.replicas
    return run(settings.model_copy(update=changes), trace=options.trace, report=options.json, plot=options.plot)


def _plan(options: argparse.Namespace) -> int:
    from sparktier.serving.bench.simulate.plan_command import run
    from sparktier.serving.bench.simulate.settings import load_simulate_settings

    return run(
        load_simulate_settings(options.config),
        trace=options.traffic,
        rate_s=options.rate,
        attain=options.attain,
        most=options.most,
        report=options.json,
    )
