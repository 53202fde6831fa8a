"""What speculation is configured with for a replica's lifetime, as it travels to the ranks: JSON in one variable.

Knows nothing of the settings file it comes from, and imports no SGLang.
"""

import json
from dataclasses import asdict, dataclass

ALGORITHM = "SPARKTIER"
"""The name our algorithm has in SGLang's registry."""
ENV = "SPARKTIER_SPECULATION"


@dataclass(frozen=True)
class Options:
    """`short_tokens`: tokens drafted at rung CHAIN_SHORT. The block itself is the draft checkpoint's or SGLang's."""

    short_tokens: int

    def dump(self) -> str:
        """Return the text of the variable."""
        return json.dumps(asdict(self))


def load(text: str) -> Options:
    """Return the options in `text`, which `Options.dump` wrote."""
    return Options(**json.loads(text))
