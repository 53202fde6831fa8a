"""The two keys of a run, which open its replicas' own ports, and the private file that holds them."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sparktier.configs.errors import ArtifactError

# Names the file to a process. Other users could read a key in a command line or in the environment.
KEYS_FILE_ENV = "SPARKTIER_KEYS_FILE"
FILE_NAME = "keys.json"
_KEY_BYTES = 32


@dataclass(frozen=True)
class Keys:
    """`requests` opens the routes that a front needs; `admin` opens every route."""

    requests: str = field(repr=False)
    admin: str = field(repr=False)


def bearer(key: str) -> dict[str, str]:
    """Return the header that shows `key`."""
    return {"Authorization": f"Bearer {key}"}


def new_keys_file(folder: Path) -> Path:
    """Write new keys into `folder` and return the file."""
    path = folder / FILE_NAME
    keys = Keys(requests=secrets.token_urlsafe(_KEY_BYTES), admin=secrets.token_urlsafe(_KEY_BYTES))
    write_private(path, json.dumps(asdict(keys)))
    return path


def write_private(path: Path, text: str) -> None:
    """Write a new file that at every moment only its owner can read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def read_keys(path: Path) -> Keys:
    """Return the keys in `path`.

    Raises:
        ArtifactError: it can't be read, or holds no keys.
    """
    rule = f"must hold the two keys of a run, requests and admin, as {FILE_NAME} of its directory does"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        keys = Keys(requests=found["requests"], admin=found["admin"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: {rule} (found {type(error).__name__}). {_CURE}") from None
    # With an empty key SGLang asks for none.
    if not all(isinstance(key, str) and key.isascii() and key.isprintable() and key for key in asdict(keys).values()):
        raise ArtifactError(f"{path}: {rule}, each of printable ASCII (found another). {_CURE}")
    return keys


def keys_of(env: Mapping[str, str]) -> Keys:
    """Return the keys in the file that `env` names.

    Raises:
        ArtifactError: it names none, or what `read_keys` raises.
    """
    if not (named := env.get(KEYS_FILE_ENV)):
        raise ArtifactError(f"{KEYS_FILE_ENV}: must name the keys file of the replica's run (found nothing). {_CURE}")
    return read_keys(Path(named))


_CURE = "Name the file that `sparktier up` prints, or for a replica started by hand the one in its log."
