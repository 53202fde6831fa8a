"""The arguments of the `bench` command."""

import argparse
from collections.abc import Callable
from pathlib import Path

from sparktier.serving.cli.options import add_config, add_json, configured, temperature, whole_number

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add `bench`."""
    bench = add(
        "bench",
        _bench,
        "Measure a configuration on this machine; run it alone.",
        "sparktier bench speculation configs/demo.yaml --batch 1 --batch 4 --prompts gsm8k.jsonl --json out/bench.json",
    )
    bench.add_argument("what", choices=["speculation"], help="speculation: every rung of the ladder, interleaved")
    add_config(bench)
    bench.add_argument(
        "--batch", type=whole_number(1, 1024), action="append", help="users at once (default 1); repeatable"
    )
    bench.add_argument(
        "--temperature", type=temperature, action="append", help="of the answers (default 0); repeatable"
    )
    bench.add_argument(
        "--prompts", type=Path, action="append", required=True, metavar="FILE", help="jsonl of prompts; repeatable"
    )
    bench.add_argument("--tokens", type=whole_number(8, 100_000), default=64, help="longest answer (default 64)")
    bench.add_argument("--turns", type=whole_number(1, 1000), default=3, help="prompts for each user (default 3)")
    bench.add_argument("--repeats", type=whole_number(1, 1000), default=5, help="of every case (default 5)")
    bench.add_argument("--seed", type=whole_number(0, 2**31 - 1), default=0, help="of sampling and order (default 0)")
    add_json(bench, beside=", and a plot beside it")


def _bench(options: argparse.Namespace) -> int:
    settings = configured(options)
    from sparktier.serving.bench import speculation_command
    from sparktier.serving.bench.speculation import Load

    return speculation_command.run(
        settings,
        config=options.config,
        overrides=options.set,
        batches=options.batch or [1],
        temperatures=options.temperature or [0.0],
        prompts=options.prompts,
        load=Load(turns=options.turns, max_tokens=options.tokens, repeats=options.repeats, seed=options.seed),
        report=options.json,
    )
