"""The trainer's side of the trainer-engine contract (docs/trainer-engine.md): sources of target features.

Owns the spec of a source, the checks of a record against it, and the tensors of a record.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.packing import FeatureRecord, has_anchor
from sparktier.drafter.data.target import Binding, Target

FeatureDtype = Literal["bfloat16", "float32"]
TENSORS = ("token_ids", "answer_mask", "features", "last_hidden")


class FeatureSpec(BaseModel):
    """The layout of a source's records, and the target that made them.

    `temperature` and `seed` are those the target answered with (0: greedy), `dataset` is a name for reports.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_layer_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    hidden_size: int = Field(gt=0)
    dtype: FeatureDtype = "bfloat16"
    temperature: float = Field(ge=0, allow_inf_nan=False)
    seed: int = 0
    dataset: str
    target_sha256: str = ""
    tokenizer_sha256: str = ""

    @property
    def binding(self) -> Binding:
        """Return the target and tokenizer that made these features."""
        return Binding(self.target_sha256, self.tokenizer_sha256)

    def require_target(self, target: Target, what: str) -> None:
        """Raise ArtifactError unless `what`, the described source, was made by `target`."""
        target.binding.require(self.binding, what)
        if self.hidden_size != target.hidden_size or max(self.target_layer_ids) >= target.num_hidden_layers:
            raise ArtifactError(
                f"{what}: must be of the target, {target.num_hidden_layers} layers of width {target.hidden_size} "
                f"(found layers {list(self.target_layer_ids)} of width {self.hidden_size}). Make them of it."
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the dtype of both feature tensors."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @property
    def bytes_per_token(self) -> int:
        """Return the size of one position: features, last hidden state, token id, answer flag."""
        return (len(self.target_layer_ids) + 1) * self.hidden_size * self.torch_dtype.itemsize + 4 + 1


class FeatureSource(Protocol):
    """Sequences with features, numbered from 0; lengths are known before any feature is made."""

    @property
    def spec(self) -> FeatureSpec: ...

    @property
    def lengths_tokens(self) -> Sequence[int]: ...

    def read(self, order: Sequence[int]) -> Iterator[FeatureRecord]:
        """Yield the sequences numbered in `order`, in that order. Closing the iterator ends all work for it."""
        ...


def record_tensors(record: FeatureRecord, spec: FeatureSpec) -> dict[str, Tensor]:
    """Return the record as it is stored and sent: int32 ids, bool mask, features in the spec's dtype, contiguous."""
    return {
        "token_ids": record.token_ids.to(torch.int32),
        "answer_mask": record.answer_mask.bool(),
        "features": record.features.to(spec.torch_dtype).contiguous(),
        "last_hidden": record.last_hidden.to(spec.torch_dtype).contiguous(),
    }


def checked_record(tensors: Mapping[str, Tensor], spec: FeatureSpec, length_tokens: int, where: str) -> FeatureRecord:
    """Return the record behind tensors that came from elsewhere.

    Raises:
        ArtifactError: a tensor is missing, has a wrong shape, or has no room for a block.
    """
    wanted = {
        "token_ids": [length_tokens],
        "answer_mask": [length_tokens],
        "features": [length_tokens, len(spec.target_layer_ids) * spec.hidden_size],
        "last_hidden": [length_tokens, spec.hidden_size],
    }
    found = {name: list(tensors[name].shape) for name in TENSORS if name in tensors}
    if found != wanted:
        raise ArtifactError(f"{where}: tensors must have shapes {wanted} (found {found}). Make the features again.")
    record = FeatureRecord(**{name: tensors[name] for name in TENSORS})
    if not has_anchor(record.answer_mask.bool()):
        raise ArtifactError(
            f"{where}: an answer must have two tokens in a row (found {int(record.answer_mask.sum())} answer tokens). "
            "Leave such sequences out."
        )
    return record
