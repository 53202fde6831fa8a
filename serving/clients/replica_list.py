"""The file by which a supervisor tells a controller which replicas there are, where, and what is wanted of them."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sparktier.configs.contracts.message import Part, ReplicaId, RunState
from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import write_json


class Listed(Part):
    """One replica of the list. `state` is `serving` once it may get requests, `off` while it has no ready engine."""

    url: str
    state: RunState = "serving"


_LIST = TypeAdapter(dict[ReplicaId, Listed])


def read_replicas(path: Path) -> dict[str, Listed]:
    """Return the replicas that the file at `path` lists, by id.

    Raises:
        ArtifactError: it can't be read, or is no such list.
    """
    try:
        return _LIST.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        found = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise ArtifactError(
            f"{path}: must list replicas as JSON, each id with its url and state (found {found}). `sparktier up` writes"
            " one into its run's directory."
        ) from None


def write_replicas(path: Path, replicas: Mapping[str, Listed]) -> None:
    """Replace the list at `path`. Raises ArtifactError when it can't be written."""
    write_json(path, {name: listed.model_dump(mode="json") for name, listed in sorted(replicas.items())})
