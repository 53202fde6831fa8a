"""Target features on disk, written shard by shard, so that an interrupted run resumes where it stopped.

Owns the folder's layout (`manifest.json`, `shard-00000.safetensors`, ...) and refuses a store that the disk can't hold.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import read_json, staged, write_json
from sparktier.drafter.data.features import TENSORS, FeatureSpec, checked_record, record_tensors
from sparktier.drafter.data.packing import FeatureRecord

MANIFEST = "manifest.json"
# A full disk breaks other programs: this share of the store's size must stay free.
SPARE_FRAC = 0.05
OPEN_SHARDS = 16


class Manifest(BaseModel):
    """The content of a complete store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    spec: FeatureSpec
    lengths_tokens: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    sequences_per_shard: int = Field(gt=0)

    @property
    def shards(self) -> int:
        """Return how many shards the complete store has."""
        return -(-len(self.lengths_tokens) // self.sequences_per_shard)


class FeatureWriter:
    """Fills a store in order. `next_index` is the next sequence to write, also after a crash."""

    def __init__(self, folder: Path, manifest: Manifest, free_bytes: int) -> None:
        """Open or continue the store.

        Args:
            folder: the store's folder.
            manifest: the whole store, as planned.
            free_bytes: room on that disk now.

        Raises:
            ArtifactError: the folder holds another store, or what is left to write doesn't fit the disk.
        """
        self.folder, self.manifest = folder, manifest
        if (folder / MANIFEST).exists() and _read_manifest(folder) != manifest:
            raise ArtifactError(f"{folder}: holds the features of other answers or another target. Use a new folder.")
        done = _complete_shards(folder, manifest)
        self.next_index = min(done * manifest.sequences_per_shard, len(manifest.lengths_tokens))
        needed = int(self._bytes_from(self.next_index) * (1 + SPARE_FRAC))
        if needed > free_bytes:
            raise ArtifactError(
                f"{folder}: needs {needed / 1e9:.2f} GB more (found {free_bytes / 1e9:.2f} GB free). Free space, use "
                "fewer answers, or stream features without a cache."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
        self._pending: list[FeatureRecord] = []

    def _bytes_from(self, index: int) -> int:
        return sum(self.manifest.lengths_tokens[index:]) * self.manifest.spec.bytes_per_token

    def append(self, record: FeatureRecord) -> None:
        """Add the sequence `next_index`; it is safe on disk once its shard is full or the store complete."""
        tensors = record_tensors(record, self.manifest.spec)
        where = f"{self.folder}: sequence {self.next_index}"
        checked_record(tensors, self.manifest.spec, self.manifest.lengths_tokens[self.next_index], where)
        self._pending.append(record)
        self.next_index += 1
        per_shard = self.manifest.sequences_per_shard
        if self.next_index % per_shard == 0 or self.next_index == len(self.manifest.lengths_tokens):
            self._write_shard((self.next_index - 1) // per_shard)

    def _write_shard(self, shard: int) -> None:
        tensors: dict[str, Tensor] = {}
        for offset, record in enumerate(self._pending):
            for name, tensor in record_tensors(record, self.manifest.spec).items():
                tensors[f"{offset}.{name}"] = tensor
        with staged(_shard_path(self.folder, shard)) as part:
            save_file(tensors, part)
        self._pending = []


class FeatureStore:
    """A complete store, read in any order (a `FeatureSource`)."""

    def __init__(self, folder: Path) -> None:
        """Open the store.

        Raises:
            ArtifactError: the folder is no store, or an incomplete one.
        """
        self.folder = folder
        self.manifest = _read_manifest(folder)
        done = _complete_shards(folder, self.manifest)
        if done < self.manifest.shards:
            raise ArtifactError(
                f"{folder}: must have {self.manifest.shards} shards (found {done} in a row). Run the extraction again; "
                "it goes on where it stopped."
            )
        self._shard = lru_cache(maxsize=OPEN_SHARDS)(self._open)

    @property
    def spec(self) -> FeatureSpec:
        """Return what the records hold."""
        return self.manifest.spec

    @property
    def lengths_tokens(self) -> Sequence[int]:
        """Return every sequence's length."""
        return self.manifest.lengths_tokens

    def read(self, order: Sequence[int]) -> Iterator[FeatureRecord]:
        """Yield sequences in `order`."""
        return map(self._sequence, order)

    def _sequence(self, index: int) -> FeatureRecord:
        shard, offset = divmod(index, self.manifest.sequences_per_shard)
        handle = self._shard(shard)
        try:
            tensors = {name: handle.get_tensor(f"{offset}.{name}") for name in TENSORS}
        except SafetensorError as error:
            raise ArtifactError(f"{_shard_path(self.folder, shard)}: {error}. Delete it and extract again.") from None
        where = f"{self.folder}: sequence {index}"
        return checked_record(tensors, self.spec, self.manifest.lengths_tokens[index], where)

    def _open(self, shard: int) -> Any:
        path = _shard_path(self.folder, shard)
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path}: must be a safetensors file ({error}). Delete it; extract again.") from None


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def _complete_shards(folder: Path, manifest: Manifest) -> int:
    return next((shard for shard in range(manifest.shards) if not _shard_path(folder, shard).exists()), manifest.shards)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        return Manifest.model_validate(read_json(path, "a feature store's manifest"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ArtifactError(
            f"{path}: {where}: {first['msg']} (found {first['input']!r:.80}). Make the store again."
        ) from None
