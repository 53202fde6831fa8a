"""Feature store and stream: resumable, sized before it starts, refused when wrong, bounded in memory."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.feature_store import FeatureStore, FeatureWriter, Manifest
from sparktier.drafter.data.feature_stream import FeatureStream
from sparktier.drafter.data.features import TENSORS, FeatureSpec, checked_record
from sparktier.drafter.data.packing import FeatureRecord, anchor_candidates, has_anchor, pack
from support.drafts import random_record, tiny_config

CONFIG = tiny_config()
LENGTHS = (5, 9, 4, 7, 6, 8, 5)
PLENTY = 10**12


def spec(**changes: object) -> FeatureSpec:
    fields = {"target_layer_ids": (1, 3, 5), "hidden_size": 32, "dtype": "float32", "temperature": 0.0, "dataset": "d"}
    return FeatureSpec.model_validate(fields | changes)


def manifest(**changes: object) -> Manifest:
    return Manifest(spec=spec(**changes), lengths_tokens=LENGTHS, sequences_per_shard=3)


def records() -> list[FeatureRecord]:
    return [random_record(CONFIG, length, 1, seed) for seed, length in enumerate(LENGTHS)]


def fill(folder: Path, until: int = len(LENGTHS)) -> None:
    writer = FeatureWriter(folder, manifest(), PLENTY)
    for record in records()[writer.next_index : until]:
        writer.append(record)


def same(a: FeatureRecord, b: FeatureRecord) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("answer_mask", "features", "last_hidden"))


def test_a_store_returns_what_was_put_in_any_order(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    store = FeatureStore(tmp_path / "store")
    order = [6, 0, 3, 3, 2]
    read = list(store.read(order))
    assert all(same(read[i], records()[index]) for i, index in enumerate(order))
    assert [record.token_ids.tolist() for record in read] == [records()[i].token_ids.tolist() for i in order]


@pytest.mark.parametrize("stopped_at", range(len(LENGTHS)))
def test_an_interrupted_store_goes_on_and_ends_the_same(stopped_at: int, tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    fill(tmp_path / "broken", until=stopped_at)
    with pytest.raises(ArtifactError, match="goes on where it stopped"):
        FeatureStore(tmp_path / "broken")
    fill(tmp_path / "broken")
    for path in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "broken" / path.name).read_bytes() == path.read_bytes(), path.name


def tensor_bytes() -> int:
    return sum(LENGTHS) * spec().bytes_per_token


def test_size_is_known_before_and_close_to_the_files(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    on_disk = sum(path.stat().st_size for path in (tmp_path / "store").glob("shard-*"))
    headers = 3 * 1200
    assert tensor_bytes() <= on_disk <= tensor_bytes() + headers


def test_a_small_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="GB free"):
        FeatureWriter(tmp_path / "store", manifest(), free_bytes=tensor_bytes())
    assert not (tmp_path / "store").exists()
    fill(tmp_path / "store", until=6)
    rest = LENGTHS[6] * spec().bytes_per_token
    FeatureWriter(tmp_path / "store", manifest(), free_bytes=int(rest * 1.06))


def test_another_targets_features_are_not_mixed_in(tmp_path: Path) -> None:
    fill(tmp_path / "store", until=3)
    with pytest.raises(ArtifactError, match="another target"):
        FeatureWriter(tmp_path / "store", manifest(target_sha256="f" * 64), PLENTY)


def test_records_that_break_the_contract_are_refused(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path / "store", manifest(), PLENTY)
    with pytest.raises(ArtifactError, match="shapes"):
        writer.append(random_record(CONFIG, LENGTHS[0] + 1, 1, 0))
    with pytest.raises(ArtifactError, match="two tokens in a row"):
        writer.append(random_record(CONFIG, LENGTHS[0], LENGTHS[0] - 1, 0))


class LargestResult(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.elements = max(self.elements, made.numel() if isinstance(made, Tensor) else 0)
        return made


@given(st.lists(st.booleans(), max_size=12))
def test_a_mask_has_an_anchor_where_packing_finds_one(mask: list[bool]) -> None:
    record = replace(random_record(CONFIG, len(mask), 0, 0), answer_mask=torch.tensor(mask, dtype=torch.bool))
    assert has_anchor(record.answer_mask) == bool(len(anchor_candidates(pack([record]))))


def test_a_record_is_checked_without_a_copy_of_its_features() -> None:
    record = random_record(CONFIG, 40, 1, 0)
    tensors = {name: getattr(record, name) for name in TENSORS}
    with LargestResult() as largest:
        checked = checked_record(tensors, spec(), 40, "here")
    assert checked.features is record.features
    assert 0 < largest.elements <= 40


def test_a_damaged_shard_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    path = tmp_path / "store" / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="shard-00001"):
        list(FeatureStore(tmp_path / "store").read([4]))


def stream(in_flight: int = 2) -> FeatureStream:
    return FeatureStream(spec(), LENGTHS, lambda order: (records()[index] for index in order), in_flight)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, len(LENGTHS) - 1), max_size=20), st.integers(1, 4))
def test_a_stream_yields_what_was_asked_in_order(order: list[int], in_flight: int) -> None:
    read = list(stream(in_flight).read(order))
    assert len(read) == len(order)
    assert all(same(record, records()[index]) for record, index in zip(read, order, strict=True))


def test_a_slow_trainer_holds_the_producer_back() -> None:
    made: list[int] = []
    in_flight, threads = 3, threading.active_count()
    full = threading.Event()

    def produce(order: Iterator[int]) -> Iterator[FeatureRecord]:
        for index in order:
            made.append(index)
            if len(made) == in_flight + 1:
                full.set()
            yield records()[index]

    reading = FeatureStream(spec(), LENGTHS, produce, in_flight).read([0] * 50)
    assert isinstance(reading, Generator)
    for consumed in range(1, 6):
        next(reading)
        assert full.wait(10)
        time.sleep(0.05)  # a producer that nothing holds back would be far ahead by now
        # In the queue, and one in the producer's hands that waits for room.
        assert len(made) <= consumed + in_flight + 1
    before = len(made)
    reading.close()
    assert threading.active_count() == threads, "closing the reader must end the producer"
    assert len(made) <= before + 1


def test_a_producers_error_reaches_the_trainer() -> None:
    def produce(order: Iterator[int]) -> Iterator[FeatureRecord]:
        yield records()[next(order)]
        raise ConnectionError("the engine went away")

    reading = FeatureStream(spec(), LENGTHS, produce, 2).read([0, 1])
    next(reading)
    with pytest.raises(ConnectionError, match="went away"):
        next(reading)


def test_a_producer_that_answers_another_question_is_refused() -> None:
    wrong = FeatureStream(spec(), LENGTHS, lambda order: (records()[index + 1] for index in order), 2)
    with pytest.raises(ArtifactError, match="streamed sequence 0"):
        next(wrong.read([0]))


def test_a_producer_that_ends_early_is_not_taken_for_the_end() -> None:
    short = FeatureStream(spec(), LENGTHS, lambda order: iter([records()[0]]), 2).read([0, 1])
    next(short)
    with pytest.raises(ArtifactError, match="ended before"):
        next(short)
