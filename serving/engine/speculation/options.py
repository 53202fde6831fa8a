"""What speculation is configured with for a replica's lifetime, as it travels to the ranks: JSON in one variable.

Knows nothing of the settings file it comes from.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

ENV = "SPARKTIER_SPECULATION"


@dataclass(frozen=True)
class Options:
    """`block_tokens`: tokens drafted at most (gamma); `short_tokens`: at rung CHAIN_SHORT; `rung`: at the start."""

    block_tokens: int
    short_tokens: int
    accept_rule: Literal["target_match", "ratio"] = "target_match"
    rung: int = 2

    def dump(self) -> str:
        """Return the text of the variable."""
        return json.dumps(asdict(self))


def load(text: str) -> Options:
    """Return the options in `text`, which `Options.dump` wrote."""
    return Options(**json.loads(text))
