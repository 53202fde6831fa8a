"""The progress bar of long work."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(label: str, total: int, console: Console) -> Iterator[tuple[Progress, TaskID]]:
    """Show a bar that counts to `total`; where there is no terminal, print one line at the end instead."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield bar, bar.add_task(label, total=total)
    console.print(f"{label}: {total} done", highlight=False)
