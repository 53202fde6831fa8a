"""Operators' orders on replicas, in a file, so that they outlive the controller that took them."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sparktier.cluster.controller import Place
from sparktier.configs.contracts.message import Part, ReplicaId, RungNumber
from sparktier.configs.contracts.order import ReplicaOrder
from sparktier.configs.files import write_json

logger = logging.getLogger(__name__)


class Standing(Part):
    """What was ordered of one replica and is in force; `actor` gave the last order."""

    draining: bool = False
    held_rung: RungNumber | None = None
    actor: str


_FILE = TypeAdapter(dict[ReplicaId, Standing])


class Orders:
    """The orders in the file at `path`. One that can't be read holds none, and is logged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.standing: dict[str, Standing] = {}
        if not path.exists():
            return
        try:
            self.standing = _FILE.validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            logger.error("%s: operators' orders can't be read, so none is in force (found %s)", path, error)

    def give(self, order: ReplicaOrder) -> None:
        """Put `order` in force. Raises ArtifactError where it can't be written."""
        before = self.standing.get(order.replica_id, Standing(actor=order.actor))
        standing = dict(self.standing)
        if order.action == "resume":
            standing.pop(order.replica_id, None)
        elif order.action == "drain":
            standing[order.replica_id] = before.model_copy(update={"draining": True, "actor": order.actor})
        else:
            standing[order.replica_id] = before.model_copy(update={"held_rung": order.rung, "actor": order.actor})
        write_json(self._path, {name: each.model_dump(mode="json") for name, each in standing.items()})
        self.standing = standing

    def applied(self, places: Mapping[str, Place]) -> dict[str, Place]:
        """Return `places` with what is ordered of each."""
        return {name: self._ordered(place, self.standing.get(name)) for name, place in places.items()}

    def _ordered(self, place: Place, standing: Standing | None) -> Place:
        if standing is None:
            return place
        wants = []
        if standing.draining:
            wants.append("drain")
        if standing.held_rung is not None:
            wants.append(f"hold rung {standing.held_rung}")
        asked = "draining" if standing.draining and place.asked == "serving" else place.asked
        order = f"{standing.actor} ordered to {' and '.join(wants)}"
        return replace(place, asked=asked, held_rung=standing.held_rung, order=order)
