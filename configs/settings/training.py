"""The `training` section: what a replica hands out so that a drafter can be trained."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from sparktier.configs.settings.section import Section

LayerId = Annotated[int, Field(ge=0)]


class TrainingSettings(Section):
    """Features of the target for a trainer (docs/trainer-engine.md)."""

    target_layer_ids: Sequence[LayerId] | None = Field(
        default=None,
        min_length=1,
        description="Layers, from 0 and rising, whose outputs a trainer may ask for on the replica's own port; null"
        " hands nothing out. Of most models the last layer can't be read.",
    )
    records_at_once: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Sequences that one replica makes features of at a time; more wait. Bounds its memory.",
    )
