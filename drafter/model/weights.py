"""The files of a draft's weights, and the digest by which calibrations and notes name them."""

import hashlib
from pathlib import Path

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import sha256_of

WEIGHTS = "model.safetensors"


def weights_sha256(folder: Path) -> str:
    """Return the digest of a checkpoint's weights: of its one file, or of the digests of its parts by name.

    Raises:
        ArtifactError: the folder holds no weights.
    """
    if (folder / WEIGHTS).exists():
        return sha256_of(folder / WEIGHTS)
    parts = sorted(folder.glob("*.safetensors"))
    if not parts:
        raise ArtifactError(f"{folder}: holds no *.safetensors. Give the folder of a checkpoint.")
    lines = "".join(f"{part.name} {sha256_of(part)}\n" for part in parts)
    return hashlib.sha256(lines.encode()).hexdigest()
