"""Slow plain versions of prompt lookup and of joining its chain to a tree: the oracle of the batched ones.

One request at a time, Python lists. Used by tests and checks, never on the hot path.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sparktier.kernels.reference.tree import Node


class Found(NamedTuple):
    """How many of the latest tokens were found earlier, 0 for none, and what followed there."""

    matched: int
    drafts: list[int]


def look_up(context: Sequence[int], *, tokens: int, shortest: int, longest: int, vocabulary: int) -> Found:
    """Try every suffix, longest first, at every earlier place, latest first."""
    for length in range(min(longest, len(context) - 1), shortest - 1, -1):
        suffix = list(context[-length:])
        for end in range(len(context) - 1, length - 1, -1):
            if list(context[end - length : end]) == suffix:
                return Found(length, _following(context, end, tokens, vocabulary))
    return Found(0, [])


def _following(context: Sequence[int], first: int, tokens: int, vocabulary: int) -> list[int]:
    """What follows from place `first` on, over and over; up to an id that no token has."""
    text = list(context)
    drafts: list[int] = []
    for place in range(first, first + tokens):
        if not 0 <= text[place] < vocabulary:
            break
        drafts.append(text[place])
        text.append(text[place])
    return drafts


def kinds_of(nodes: Sequence[Node], drafts: Sequence[int]) -> list[str]:
    """For each draft: whether the drafter has it there (agreed), others alone (contested), or nothing (alone)."""
    kinds, at = [], 0
    for token in drafts:
        children = [i for i, node in enumerate(nodes) if at >= 0 and node.parent == at and node.survival > 0]
        same = [i for i in children if nodes[i].token == token]
        kinds.append("agreed" if same else "contested" if children else "alone")
        at = same[0] if same else -1
    return kinds


def join(nodes: Sequence[Node], drafts: Sequence[int], survival: Sequence[float]) -> Mapping[tuple[int, ...], float]:
    """Survival of every path of tokens that either of both drafts: of what both do, the larger."""
    found: dict[tuple[int, ...], float] = {}
    for node in range(len(nodes)):
        path: tuple[int, ...] = ()
        at = node
        while at > 0:
            path, at = (nodes[at].token, *path), nodes[at].parent
        if nodes[node].survival > 0:
            found[path] = nodes[node].survival
    for length in range(1, len(drafts) + 1):
        path = tuple(drafts[:length])
        found[path] = max(found.get(path, 0.0), survival[length - 1])
    return {path: value for path, value in found.items() if value > 0}
