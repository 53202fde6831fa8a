"""`sparktier usage`: what tenants have used, summed from the log of use."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from sparktier.configs.errors import ConfigError, Problem
from sparktier.serving.cli.options import add_json, configured

_BY = ("tenant", "tier", "replica", "day", "request")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Let `command` take a log, and what to sum it by."""
    command.add_argument(
        "config", type=Path, metavar="CONFIG|PATH", help="configuration with a usage.path, or the folder of a log"
    )
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=argparse.SUPPRESS)
    command.add_argument(
        "--by", type=_by, default=("tenant", "tier"), metavar="KEYS", help=f"sum by some of {', '.join(_BY)}"
    )
    command.add_argument("--since", type=_since, metavar="TIME", help="only requests that began then or later")
    add_json(command)


def run(options: argparse.Namespace) -> int:
    """Print the sums, and write them where asked to."""
    from rich.console import Console
    from rich.table import Table

    from sparktier.configs.report import report_meta, write_report
    from sparktier.serving.gateway.usage_log.report import usage_rows

    meta = report_meta("usage", None)
    rows = usage_rows(_folder(options), by=options.by, since=options.since)
    table = Table(*(rows[0] if rows else options.by))
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if options.json is not None:
        write_report(options.json, meta, rows)
    return 0


def _folder(options: argparse.Namespace) -> Path:
    if options.config.suffix not in (".yaml", ".yml"):
        return Path(options.config)
    path = configured(options).usage.path
    if path is None:
        raise ConfigError([Problem("usage.path", "must name the folder of a log", "null", "Set it, or name a folder.")])
    return Path(path)


def _by(text: str) -> tuple[str, ...]:
    keys = tuple(part.strip() for part in text.split(","))
    if not set(keys) <= set(_BY) or len(set(keys)) < len(keys):
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(_BY)}, each once, not {text!r}")
    return keys


def _since(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        example = "2026-11-28 or 2026-11-28T12:00+00:00"
        raise argparse.ArgumentTypeError(f"must be a day or a time such as {example}, not {text!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
