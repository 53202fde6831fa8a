"""What speculation is configured with for a replica's lifetime, as it travels to the ranks: JSON in one variable."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

ALGORITHM = "SPARKTIER"
"""The name our algorithm has in SGLang's registry."""
ENV = "SPARKTIER_SPECULATION"
DEFAULT_RUNNING_REQUESTS = 48
"""Requests that run at once where the settings leave it open: SGLang's own number for its methods of speculation."""
AcceptRule = Literal["match", "ratio"]


@dataclass(frozen=True)
class TreeOptions:
    """Bounds of a draft tree: `rows` verified per request, the anchor's included; parents expanded per level."""

    rows: int
    parents: int
    children: int


@dataclass(frozen=True)
class Options:
    """`short_tokens`: tokens drafted at rung CHAIN_SHORT. `block_tokens`: None takes the draft checkpoint's.

    `accept_rule`: `match` keeps drafts that equal the target's own keyed choice, `ratio` draws drafts and accepts each
    with probability min(1, p/q).
    """

    short_tokens: int
    block_tokens: int | None = None
    accept_rule: AcceptRule = "match"
    tree: TreeOptions | None = None

    @property
    def method(self) -> str:
        """The method of the settings that these are the options of."""
        return "chain" if self.tree is None else "tree"

    def block(self, trained_tokens: int | None) -> int | None:
        """Return the block to draft: the one asked for, but none longer than the checkpoint was trained for."""
        if self.block_tokens is None or trained_tokens is None:
            return self.block_tokens or trained_tokens
        return min(self.block_tokens, trained_tokens)

    def width(self, block_tokens: int) -> int:
        """Return the rows a request may bring to a verify pass, with drafts of `block_tokens`."""
        return max(block_tokens + 1, self.tree.rows if self.tree else 0)

    def dump(self) -> str:
        """Return the text of the variable."""
        return json.dumps(asdict(self))


def load(text: str) -> Options:
    """Return the options in `text`, which `Options.dump` wrote."""
    fields = json.loads(text)
    tree = fields.pop("tree")
    return Options(**fields, tree=TreeOptions(**tree) if tree else None)


def penalty_table_bytes(*, slots: int, vocab: int) -> int:
    """Return what a rank's table of penalties takes: a count of 4 bytes and a stop of 1 for each slot and token."""
    return slots * vocab * (4 + 1)
