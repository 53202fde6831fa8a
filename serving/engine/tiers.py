"""Which tier a request belongs to, as a rank sees it: the gateway's id in `custom_params`, checked against the known.

The ids travel to the ranks as JSON in one variable.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ENV = "SPARKTIER_TIERS"
PARAM = "sparktier_tier"


@dataclass(frozen=True)
class Tiers:
    """The ids that the settings name, and the one that serves requests which name none."""

    ids: tuple[int, ...]
    default: int

    def of(self, custom_params: object) -> int:
        """Return the tier in `custom_params`, or the default one for none or an unknown one."""
        asked = _asked(custom_params)
        return asked if asked in self.ids else self.default

    def is_unknown(self, custom_params: object) -> bool:
        """Whether `custom_params` ask for a tier that is not among `ids`."""
        named = isinstance(custom_params, Mapping) and custom_params.get(PARAM) is not None
        return named and _asked(custom_params) not in self.ids

    def dump(self) -> str:
        """Return the text of the variable."""
        return json.dumps({"ids": list(self.ids), "default": self.default})


def load(text: str) -> Tiers:
    """Return the tiers in `text`, which `Tiers.dump` wrote."""
    fields: dict[str, Any] = json.loads(text)
    return Tiers(ids=tuple(fields["ids"]), default=fields["default"])


def _asked(custom_params: object) -> int | None:
    """Return the whole number that `custom_params` ask for; gRPC's Struct makes numbers floats on their way."""
    value = custom_params.get(PARAM) if isinstance(custom_params, Mapping) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return int(value) if float(value).is_integer() else None
