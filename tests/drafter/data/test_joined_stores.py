"""Several stores as one source: numbering, order, and what may not be mixed."""

from pathlib import Path

import pytest
import torch

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.feature_store import FeatureWriter, Manifest
from sparktier.drafter.data.features import FeatureSpec
from sparktier.drafter.data.joined_stores import JoinedStores
from support.drafts import random_record, tiny_config


def write_store(folder: Path, lengths: list[int], **spec: object) -> Path:
    config = tiny_config()
    fields: dict[str, object] = {"target_layer_ids": (1, 3, 5), "hidden_size": 32, "temperature": 0.0, "dataset": "d"}
    manifest = Manifest(
        spec=FeatureSpec.model_validate(fields | spec), lengths_tokens=tuple(lengths), sequences_per_shard=2
    )
    writer = FeatureWriter(folder, manifest, 10**9)
    for length in lengths:
        writer.append(random_record(config, length, 2, seed=length))
    return folder


def test_sequences_are_numbered_through(tmp_path: Path) -> None:
    folders = [write_store(tmp_path / "a", [5, 6, 7]), write_store(tmp_path / "b", [8], temperature=1.0, seed=3)]
    source = JoinedStores([*folders, write_store(tmp_path / "c", [9, 10])])
    assert list(source.lengths_tokens) == [5, 6, 7, 8, 9, 10]
    order = [5, 0, 3, 2, 4, 3]
    for index, record in zip(order, source.read(order), strict=True):
        expected = random_record(tiny_config(), source.lengths_tokens[index], 2, seed=source.lengths_tokens[index])
        assert torch.equal(record.token_ids.long(), expected.token_ids)
        torch.testing.assert_close(record.features, expected.features.bfloat16())


@pytest.mark.parametrize("other", [{"target_layer_ids": (0, 3, 5)}, {"target_sha256": "f" * 64}])
def test_other_targets_and_layers_are_refused(tmp_path: Path, other: dict[str, object]) -> None:
    folders = [write_store(tmp_path / "a", [5]), write_store(tmp_path / "b", [6], **other)]
    with pytest.raises(ArtifactError, match=r"b: must be of the target and layers of .*a"):
        JoinedStores(folders)


def test_no_store_is_refused() -> None:
    with pytest.raises(ArtifactError, match="at least one store"):
        JoinedStores([])
