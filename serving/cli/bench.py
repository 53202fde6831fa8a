"""The arguments of the commands that measure: `bench` and `profile`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from sparktier.serving.cli.drafter import add_answers
from sparktier.serving.cli.options import (
    add_config,
    add_json,
    add_verb,
    configured,
    fraction,
    real_number,
    temperature,
    whole_number,
    writable_path,
)

_SPECULATION = (
    "Every rung of the ladder, interleaved; run it alone.",
    "sparktier bench speculation configs/demo.yaml --batch 1 --batch 4 --prompts gsm8k.jsonl --json out/bench.json",
)
_TIERS = (
    "What tiers are worth: policies compared in virtual time.",
    "sparktier bench tiers docs/measurements/tiers.yaml --json out/tiers.json --plot out/tiers.png",
)
_SERVE = (
    "Open-loop load by tier from a rate or a trace, and what each tier got of its promise.",
    "sparktier bench serve configs/demo.yaml --rate 0.5 --rate 1 --rate 2 --json out/serve.json",
)
_RECORD = (
    "Record a drafter's drafts at every token of a model's answers, for `bench tiers`.",
    "sparktier bench record configs/demo.yaml --prompts gsm8k.jsonl --limit 40 --out out/answers.npz",
)
Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add `bench` and `profile`."""
    bench = add(
        "bench",
        _nothing,
        "Measure a configuration on this machine, or policies in virtual time.",
        "sparktier bench speculation configs/demo.yaml --prompts gsm8k.jsonl",
    )
    kinds = bench.add_subparsers(required=True, metavar="WHAT")
    _add_speculation(add_verb(kinds, "speculation", _speculation, *_SPECULATION))
    _add_tiers(add_verb(kinds, "tiers", _tiers, *_TIERS))
    _add_serve(add_verb(kinds, "serve", _serve, *_SERVE))
    _add_record(add_verb(kinds, "record", _record, *_RECORD))
    profile = add(
        "profile",
        _profile,
        "Measure what a step of a configuration costs on this machine; run it alone.",
        "sparktier profile configs/demo.yaml --batch 1 --batch 4 --batch 16 --out out/step-times.json",
    )
    add_config(profile)
    profile.add_argument(
        "--batch", type=whole_number(1, 1024), action="append", help="users at once (default 1, 4 and 16); repeatable"
    )
    profile.add_argument("--repeats", type=whole_number(1, 1000), default=5, help="of the whole grid (default 5)")
    profile.add_argument("--seconds", type=real_number(0.1), default=4.0, help="of one window (default 4)")
    profile.add_argument("--seed", type=whole_number(0, 2**31 - 1), default=0, help="of the order (default 0)")
    profile.add_argument(
        "--out",
        type=writable_path,
        default=Path("out/step-times.json"),
        metavar="PATH",
        help="the table (default out/step-times.json); SGLang's form (.sps.json) and a plot (.png) go beside it",
    )
    add_json(profile)


def _add_speculation(bench: argparse.ArgumentParser) -> None:
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


def _add_tiers(bench: argparse.ArgumentParser) -> None:
    bench.add_argument(
        "config", type=Path, metavar="CONFIG", help="YAML file of the measurement, see docs/measurements"
    )
    bench.add_argument("--policy", action="append", help="in place of the file's; repeatable")
    bench.add_argument(
        "--promise-factor",
        type=real_number(0.01),
        action="append",
        help="promise over the mean speed at equal weights, in place of the file's; repeatable",
    )
    bench.add_argument(
        "--strict-frac", type=fraction, action="append", help="of users, in place of the file's; repeatable"
    )
    bench.add_argument(
        "--seed", type=whole_number(0, 2**31 - 1), action="append", help="in place of the file's; repeatable"
    )
    bench.add_argument("--table", action="append", help="of the file's tables, only these; repeatable")
    bench.add_argument(
        "--engine",
        action="store_true",
        help="run SGLang and the table's model under the same clock, in place of the simulated engine",
    )
    add_json(bench)
    bench.add_argument("--plot", type=writable_path, metavar="PATH", help="PNG of promises kept against throughput")


def _add_serve(bench: argparse.ArgumentParser) -> None:
    add_config(bench)
    bench.add_argument("--url", help="gateway of this configuration that runs already; it isn't started then")
    bench.add_argument("--keys", type=Path, metavar="FILE", help='JSON file of keys to show, {"tenant": "key"}')
    bench.add_argument(
        "--rate", type=real_number(0.001), action="append", help="requests per second, one load each; repeatable"
    )
    bench.add_argument(
        "--trace", type=Path, metavar="FILE", help="Azure's or BurstGPT's CSV, or Mooncake's JSON lines, at each rate"
    )
    bench.add_argument("--seconds", type=real_number(1), default=60.0, help="of each load (default 60)")
    bench.add_argument(
        "--share",
        type=_share,
        action="append",
        default=[],
        metavar="TIER=WEIGHT",
        help="of the requests (default: all tiers alike); repeatable",
    )
    bench.add_argument(
        "--prompts",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="jsonl of prompts (default: some of our own); repeatable",
    )
    bench.add_argument(
        "--tokens", type=whole_number(1, 100_000), help="longest answer (default 128, or as long as a trace says)"
    )
    bench.add_argument("--policy", help="name of what is measured, for the report (default: controller or fixed)")
    bench.add_argument("--seed", type=whole_number(0, 2**31 - 1), default=0, help="of all that is drawn (default 0)")
    add_json(bench, beside="; a plot and each request go beside it")


def _share(text: str) -> tuple[str, float]:
    name, found, weight = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"must be TIER=WEIGHT, not {text!r}")
    return name, real_number(0)(weight)


def _add_record(bench: argparse.ArgumentParser) -> None:
    add_config(bench)
    add_answers(bench)
    bench.add_argument("--seed", type=whole_number(0, 2**31 - 1), default=1, help="of answers (default 1)")
    bench.add_argument(
        "--out",
        type=writable_path,
        default=Path("out/answers.npz"),
        metavar="PATH",
        help="the file (default out/answers.npz)",
    )


def _record(options: argparse.Namespace) -> int:
    settings = configured(options)
    from sparktier.serving.bench.tiers import record_command
    from sparktier.serving.drafting.sources import AnswerSelection

    temperatures = options.temperature or [0.0]
    selection = AnswerSelection(
        options.features, options.prompts, options.limit, temperatures, options.tokens, options.seed
    )
    return record_command.run(settings, draft=options.draft, selection=selection, out=options.out)


def _serve(options: argparse.Namespace) -> int:
    settings = configured(options)
    from sparktier.serving.bench.serve import command

    asked = command.ServeOptions(
        url=options.url,
        keys=options.keys,
        rates_s=options.rate or [],
        trace=options.trace,
        span_s=options.seconds,
        weights=dict(options.share),
        prompts=options.prompts,
        tokens=options.tokens,
        policy=options.policy,
        seed=options.seed,
    )
    return command.run(settings, asked, config=options.config, overrides=options.set, report=options.json)


def _nothing(_options: argparse.Namespace) -> int:
    raise AssertionError("each kind has its own command")


def _tiers(options: argparse.Namespace) -> int:
    from sparktier.serving.bench.tiers import command
    from sparktier.serving.bench.tiers.settings import load_tiers_settings

    settings = load_tiers_settings(options.config).narrowed(
        policies=options.policy,
        promise_factors=options.promise_factor,
        strict_fracs=options.strict_frac,
        seeds=options.seed,
        tables=options.table,
    )
    return command.run(settings, real=options.engine, report=options.json, plot=options.plot)


def _speculation(options: argparse.Namespace) -> int:
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


def _profile(options: argparse.Namespace) -> int:
    settings = configured(options)
    from sparktier.serving.bench import profile_command

    return profile_command.run(
        settings,
        config=options.config,
        overrides=options.set,
        sizes=sorted(set(options.batch or [1, 4, 16])),
        repeats=options.repeats,
        window_s=options.seconds,
        seed=options.seed,
        out=options.out,
        report=options.json,
    )
