"""Shows the progress of a training run: one live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_STEPS = 50


class Watcher(Protocol):
    """Is told of every finished step."""

    def update(self, step: int, figures: Mapping[str, float]) -> None: ...


class StepTimes:
    """Notes the moment (`time.monotonic`) at which each step ended."""

    def __init__(self) -> None:
        self.ended_s: list[float] = []

    def update(self, step: int, figures: Mapping[str, float]) -> None:
        """Note that a step ended now."""
        del step, figures
        self.ended_s.append(time.monotonic())


class TrainingProgress:
    """Shows steps, time left and the latest figures (losses, tokens/s, held-out accepted length)."""

    def __init__(self, steps: int, done: int, console: Console, shown: bool) -> None:
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._console, self._shown, self._steps = console, shown, steps
        self._bar = Progress(
            *columns, TextColumn("{task.fields[figures]}"), console=console, disable=not (shown and console.is_terminal)
        )
        self._task = self._bar.add_task("train", total=steps, completed=done, figures="")
        self._figures: dict[str, float] = {}
        self._done_before, self._started_s = done, time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, step: int, figures: Mapping[str, float]) -> None:
        """Show the figures after `step` finished steps; figures not given keep their last value."""
        self._figures |= figures
        text = "  ".join(f"{name} {value:.4g}" for name, value in self._figures.items())
        self._bar.update(self._task, completed=step, figures=text)
        plain = self._shown and not self._console.is_terminal
        if plain and (step % PLAIN_EVERY_STEPS == 0 or step == self._steps):
            of_one_s = (time.monotonic() - self._started_s) / max(step - self._done_before, 1)
            self._console.print(f"step {step}/{self._steps}  {text}  {(self._steps - step) * of_one_s:.0f} s left")
