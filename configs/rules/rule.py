"""The type of a rule between settings."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from sparktier.configs.errors import Problem
from sparktier.configs.settings.settings import Settings


@dataclass(frozen=True)
class Rule:
    """A check, and the dotted keys it reads.

    The keys are named so that a key which is wrong by itself does not also break every rule about it.
    """

    reads: tuple[str, ...]
    check: Callable[[Settings], Iterator[Problem]]

    def touches(self, keys: Collection[str]) -> bool:
        """Return whether the rule reads one of `keys`, something inside one, or something around one."""
        return any(_nested(own, key) or _nested(key, own) for own in self.reads for key in keys)


def _nested(inner: str, outer: str) -> bool:
    return f"{inner}.".startswith(f"{outer}.")
