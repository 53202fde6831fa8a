"""The base of every settings section: frozen, strict, and closed to unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One block of the configuration file.

    Strict: a quoted number is an error, not a number. Closed: an unknown key is an error, so a typo can't be ignored.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
