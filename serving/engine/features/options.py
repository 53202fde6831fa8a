"""What the ranks are told about features, as JSON in one environment variable. Without it nothing is captured."""

import json
import uuid
from dataclasses import asdict, dataclass

ENV = "SPARKTIER_FEATURES"


@dataclass(frozen=True)
class Options:
    """Layers to capture, how many sequences at a time, and where on rank 0's node the HTTP process listens for rows."""

    target_layer_ids: tuple[int, ...]
    records_at_once: int
    endpoint: str

    def dump(self) -> str:
        """Return the text of the variable."""
        return json.dumps(asdict(self))


def fresh_endpoint() -> str:
    """Return a ZeroMQ address that nobody else has: an abstract socket, so that a killed replica leaves no file."""
    return f"ipc://@sparktier-features-{uuid.uuid4().hex}"


def load(text: str) -> Options:
    """Return the options in `text`, which `Options.dump` wrote."""
    values = json.loads(text)
    return Options(**values | {"target_layer_ids": tuple(values["target_layer_ids"])})
