"""Writes the reference of the command line: `python -m support.documents.cli_page > ../docs/cli.md`.

The parser is the only place where a command is described; a test compares the document with this output.
"""

import argparse
import sys
from collections.abc import Iterator

from sparktier.serving.cli.main import _parser

_HEAD = """# Command line

`sparktier COMMAND --help` says the same. Exit codes: 0 done, 1 a check or a replica failed, 2 bad input, 130
interrupted. An error is one line on standard error: the rule, what was found, and the cure. A configuration is
described in [configuration](configuration.md); `--set KEY=VALUE` replaces one value of it and may be repeated.

This page is written by `python -m support.documents.cli_page > ../docs/cli.md` in `tests/`.
"""


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield each command below `parser` by its full name, in the parser's order; one with kinds comes before them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield name, command
                yield from ((f"{name} {inner}", kind) for inner, kind in commands(command))


def render() -> str:
    """Return the document, in Markdown."""
    return _HEAD + "".join(_section(name, command) for name, command in commands(_parser()))


def _section(name: str, command: argparse.ArgumentParser) -> str:
    lines = ["", f"## {name}", "", command.description or ""]
    rows = [row for action in command._actions if (row := _row(action))]
    if rows:
        lines += ["", "| argument | |", "|---|---|", *rows]
    if command.epilog:
        lines += ["", f"    {command.epilog.removeprefix('example:').strip()}"]
    return "\n".join(lines) + "\n"


def _row(action: argparse.Action) -> str:
    """Return the line of an argument; none for help, kinds and what the help doesn't show."""
    if isinstance(action, argparse._HelpAction | argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
        return ""
    names = list(action.option_strings) or [str(action.metavar or action.dest)]
    value = f" {action.metavar or action.dest.upper()}" if action.option_strings and action.nargs != 0 else ""
    needed = ", required" if action.required and action.option_strings else ""
    return f"| `{names[-1]}{value}`{needed} | {(action.help or '').replace('|', '&#124;')} |"


if __name__ == "__main__":
    sys.stdout.write(render())
