"""Arguments that several commands share, and the parsers of their values."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparktier.configs.files import require_room
from sparktier.configs.loading.loader import load_settings, parse_overrides
from sparktier.configs.settings.settings import Settings

_COOLEST, _HOTTEST = 0.001, 2.0


def add_verb(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
) -> argparse.ArgumentParser:
    """Add the command `name` to argparse's `commands`; its help ends with `example`."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=run)
    return command


def add_config(command: argparse.ArgumentParser, default: Path | None = None) -> None:
    """Let `command` take a configuration file and single values in place of the file's."""
    text = "YAML file, see docs/configuration.md" + (f"; without one, {default.name}" if default else "")
    command.add_argument(
        "config", type=Path, metavar="CONFIG", nargs="?" if default else None, default=default, help=text
    )
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace one value of the file; repeatable"
    )


def add_json(command: argparse.ArgumentParser, beside: str = "") -> None:
    """Let `command` write its report to a file; `beside` says what else goes there."""
    command.add_argument("--json", type=writable_path, metavar="PATH", help=f"also write the report there{beside}")


def configured(options: argparse.Namespace) -> Settings:
    """Return the settings that the arguments of `add_config` name."""
    return load_settings(options.config, parse_overrides(options.set))


def writable_path(text: str) -> Path:
    """Return the path of a file to write. That it can be written is checked now: later the work would be lost."""
    path = Path(text)
    try:
        if path.exists() and not path.is_file():
            raise argparse.ArgumentTypeError(f"must be a file, not {text!r}; name another")
        require_room(path.parent)
    except OSError as error:
        found = f"{text}: {error.strerror}"
        raise argparse.ArgumentTypeError(f"must be a file that can be written, not {found}; name another") from None
    return path


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers within bounds."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, not {text!r}")
        return int(text)

    return parse


def real_number(least: float) -> Callable[[str], float]:
    """Return a parser of finite numbers, `least` or more."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"must be a number of at least {least:g}, not {text!r}")
        return value

    return parse


def fraction(text: str) -> float:
    """Parse a share, 0 to 1."""
    value = real_number(0)(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


def temperature(text: str) -> float:
    """Parse a sampling temperature: 0, or one by which logits can be divided; at most what a request may have."""
    value = real_number(0)(text)
    if value > _HOTTEST or 0 < value < _COOLEST:
        raise argparse.ArgumentTypeError(f"must be 0, or a number from {_COOLEST:g} to {_HOTTEST:g}, not {text!r}")
    return value
