"""The arguments of `train`, `evaluate` and `calibrate`.

Each command imports its work when it runs: torch takes seconds to load.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from sparktier.serving.cli.options import add_config, add_json, configured, temperature, whole_number

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]

SEEDS = 2**31 - 1
LIMIT = 100_000
ANSWER_TOKENS = 256


def add_commands(add: Add) -> None:
    """Add `train`, `evaluate` and `calibrate`."""
    train = add(
        "train", _train, "Make a drafter from prompts or features, or resume.", "sparktier train my-drafter.yaml"
    )
    train.add_argument("config", type=Path, metavar="FILE", help="settings of the run, see docs/drafter.md")
    _add_features(train)
    train.add_argument("--engine", metavar="URL", help="or a replica that makes features, and answers of `data`")
    train.add_argument("--answers", type=Path, metavar="FILE", help="with --engine: the target's answers, jsonl")
    train.add_argument(
        "--temperature", type=temperature, default=0.0, help="with --engine: what they were written at (default 0)"
    )
    train.add_argument("--start", type=Path, metavar="CHECKPOINT", help="a draft to fine-tune: for a domain, thinking")
    evaluate = add(
        "evaluate",
        _evaluate,
        "Measure a drafter's accepted length without an engine.",
        "sparktier evaluate my-model.yaml --prompts gsm8k.jsonl --limit 40 --temperature 0 --json gsm8k.json",
    )
    _add_answers(evaluate, split="")
    evaluate.add_argument(
        "--seed", type=whole_number(0, SEEDS), action="append", help="of answers and coins (default 1); repeatable"
    )
    calibrate = add(
        "calibrate",
        _calibrate,
        "Fit a drafter's confidences and tree children.",
        "sparktier calibrate my-model.yaml --prompts my-traffic.jsonl --temperature 0 --temperature 1",
    )
    _add_answers(calibrate, split=" of the calibration split")
    calibrate.add_argument("--seed", type=whole_number(0, SEEDS), default=1, help="of answers and coins (default 1)")
    calibrate.add_argument(
        "--out", type=Path, metavar="FOLDER", help="a new folder for the calibrated drafter (default: its own)"
    )


def _add_features(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--features", type=Path, action="append", default=[], metavar="FOLDER", help="a feature store; repeatable"
    )


def _add_answers(command: argparse.ArgumentParser, split: str) -> None:
    add_config(command)
    add_answers(command, split=split)
    add_json(command)


def add_answers(command: argparse.ArgumentParser, split: str = "") -> None:
    """Let `command` take a drafter and the answers to replay; `split` says which part of the prompts it takes."""
    command.add_argument("--draft", type=Path, metavar="FOLDER", help="a drafter other than the configuration's")
    command.add_argument(
        "--prompts", type=Path, action="append", default=[], metavar="FILE", help="jsonl of prompts; repeatable"
    )
    command.add_argument(
        "--limit", type=whole_number(1, LIMIT), help=f"prompts to take of each file{split} (default: all)"
    )
    command.add_argument(
        "--temperature", type=temperature, action="append", help="of the answers (default 0); repeatable"
    )
    command.add_argument(
        "--tokens", type=whole_number(2, LIMIT), default=ANSWER_TOKENS, help=f"longest answer (default {ANSWER_TOKENS})"
    )
    _add_features(command)


def _train(options: argparse.Namespace) -> int:
    from sparktier.serving.drafting import train as train_command

    return train_command.run(
        options.config,
        features=options.features,
        engine=options.engine,
        answers=options.answers,
        temperature=options.temperature,
        start=options.start,
    )


def _evaluate(options: argparse.Namespace) -> int:
    settings = configured(options)
    from sparktier.serving.drafting import evaluate as evaluate_command
    from sparktier.serving.drafting.sources import AnswerSelection

    seeds: Sequence[int] = options.seed or [1]
    selection = AnswerSelection(
        options.features, options.prompts, options.limit, options.temperature or [0.0], options.tokens, seeds[0]
    )
    return evaluate_command.run(settings, draft=options.draft, selection=selection, seeds=seeds, report=options.json)


def _calibrate(options: argparse.Namespace) -> int:
    settings = configured(options)
    from sparktier.serving.drafting import calibrate as calibrate_command
    from sparktier.serving.drafting.sources import AnswerSelection

    selection = AnswerSelection(
        options.features,
        options.prompts,
        options.limit,
        options.temperature or [0.0],
        options.tokens,
        options.seed,
        split="calibrate",
    )
    return calibrate_command.run(
        settings, draft=options.draft, selection=selection, out=options.out, report=options.json
    )
