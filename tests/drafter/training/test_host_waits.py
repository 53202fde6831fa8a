"""A row of training never makes the host wait for the device: fake tensors have no values that it could wait for."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bench.baselines import DRAFTERS, toy_course
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparktier.drafter.data.feature_store import FeatureStore
from sparktier.drafter.data.packing import PackedRow
from sparktier.drafter.data.target import read_target
from sparktier.drafter.model.sampled_vocab import VocabSample
from sparktier.drafter.training.distributed import DistributedContext
from sparktier.drafter.training.train import build_model
from sparktier.drafter.training.trainer import Trainer, _Pick
from support.toy_training import write_world

HERE = DistributedContext(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


def faked(pick: _Pick, fake: Callable[[Tensor], Tensor]) -> _Pick:
    row = PackedRow(**{name: fake(value) for name, value in vars(pick.row).items()})
    sample = None if pick.sample is None else VocabSample(fake(pick.sample.ids), fake(pick.sample.log_weights))
    return _Pick(row, fake(pick.anchors), sample)


def no_copy(*_: object, **__: object) -> Tensor:
    raise AssertionError("a copy to the host waits for the device")


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("loss_columns", [0, 40])
def test_a_row_of_training_waits_for_nothing(
    name: str, loss_columns: int, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = toy_course(world, tmp_path, name, 4, seed=1).model_copy(update={"loss_columns": loss_columns})
    store, target = FeatureStore(world / "store"), read_target(world / "target")
    trainer = Trainer(settings, build_model(settings, target, store.spec), target, store, HERE)
    [row, *_], _ = next(trainer._batches())
    pick = trainer._picked(row, 0)
    mode = FakeTensorMode()
    for module in trainer.model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            held = nn.Parameter(mode.from_tensor(parameter.detach()), requires_grad=parameter.requires_grad)
            setattr(module, key, held)
    # Fake tensors refuse to tell values and counts; these would go unnoticed.
    for copy in ("cpu", "tolist", "numpy"):
        monkeypatch.setattr(Tensor, copy, no_copy)
    with mode:
        figures = trainer._pass(faked(pick, mode.from_tensor), denominator=10.0)
    assert figures.shape == (6,)
    own = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert own
    assert all(parameter.grad is not None for parameter in own)
