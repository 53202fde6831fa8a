"""EAGLE-3 and MTP-1: forward, losses, gradients and updates equal slow references; all four drafters learn."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.baselines import DRAFTERS, compared, toy_course

from sparktier.configs.errors import ArtifactError, ConfigError
from sparktier.drafter.calibration.calibrate import calibrate
from sparktier.drafter.data.feature_store import FeatureStore
from sparktier.drafter.data.packing import FeatureRecord, PackedRow, pack
from sparktier.drafter.data.target import Binding, read_target
from sparktier.drafter.evaluation.replay import replay
from sparktier.drafter.model.checkpoint import load_draft, require_served, save_draft
from sparktier.drafter.model.config import DraftConfig, Method
from sparktier.drafter.model.draft_model import DraftModel, greedy
from sparktier.drafter.model.recurrent import RecurrentModel
from sparktier.drafter.training.distributed import DistributedContext
from sparktier.drafter.training.losses import LossWeights, loss_sums
from sparktier.drafter.training.optimiser import Optimiser
from sparktier.drafter.training.train import build_model
from sparktier.drafter.training.train_settings import DraftShape
from sparktier.drafter.training.trainer import Trainer
from support.drafts import random_record, tiny_config
from support.oracles.slow_recurrent import slow_greedy, slow_logits, slow_loss
from support.toy_training import toy_settings, write_world

HERE = DistributedContext(0, 1, torch.device("cpu"))
METHODS: tuple[Method, ...] = ("eagle3", "mtp")
# EAGLE-3 weighs row k by 0.8**k.
DECAY_ROWS, DECAY = 4.4814, 0.8


def config_of(method: Method) -> DraftConfig:
    return tiny_config(None, method=method, num_hidden_layers=1, block_size=1 if method == "mtp" else 4)


def loud(method: Method, seed: int = 0) -> RecurrentModel:
    model = RecurrentModel(config_of(method))
    shout(model, seed)
    return model


def shout(model: DraftModel, seed: int) -> None:
    """Give every weight a large random value, so that every part shows in output and gradients."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)


def two_sequences(model: RecurrentModel) -> tuple[list[FeatureRecord], PackedRow, list[tuple[int, int, int]]]:
    """Return two sequences, their row, and for some anchors their sequence, place in it and place in the row."""
    records = [random_record(model.config, length, 2, seed) for length, seed in ((9, 1), (11, 2))]
    places = [(0, 2, 2), (0, 4, 4), (1, 1, 10), (1, 6, 15)]
    records[1] = replace(records[1], answer_mask=torch.ones(11, dtype=torch.bool))
    return records, pack(records), places


@pytest.mark.parametrize("method", METHODS)
def test_a_packed_row_gives_what_the_definition_gives(method: Method) -> None:
    model = loud(method)
    records, row, places = two_sequences(model)
    found = model(row, torch.tensor([place for *_, place in places]))
    for block, (sequence, anchor, _) in enumerate(places):
        read = records[sequence].token_ids[anchor : anchor + model.config.block_size].tolist()
        expected = slow_logits(model, records[sequence], anchor, read)
        torch.testing.assert_close(found.draft_logits[block], expected, rtol=1e-3, atol=1e-3)
        sources = records[sequence].last_hidden[anchor : anchor + model.config.block_size]
        torch.testing.assert_close(found.target_logits[block], sources @ model.lm_head.weight.T)


@pytest.mark.parametrize("method", METHODS)
def test_greedy_replay_is_drafting_by_the_definition(method: Method) -> None:
    model = loud(method)
    record = random_record(model.config, length=12, prompt=3, seed=5)
    found = replay(model, record, temperature=0.0, seed=1)
    for anchor, drafted in zip(found.anchors.tolist(), found.drafted.tolist(), strict=True):
        assert drafted == slow_greedy(model, record, anchor)


def test_a_sampled_block_is_scored_as_it_was_drafted() -> None:
    """Replay at a temperature accepts by `follow` and drafts by `propose`: they are one distribution."""
    model = loud("eagle3")
    row = pack([random_record(model.config, length=12, prompt=3, seed=5)])
    anchors, context = torch.tensor([4, 7]), model.context_of(row)
    hidden, generator = model.at_anchors(row, anchors, context), torch.Generator().manual_seed(2)

    def drawn(logits: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)

    draft = model.propose(row, anchors, hidden, context, drawn)
    assert not torch.equal(draft.tokens, model.propose(row, anchors, hidden, context, greedy).tokens)
    previous = torch.cat((row.token_ids[anchors].unsqueeze(1), draft.tokens[:, :-1]), dim=1)
    torch.testing.assert_close(model.follow(row, anchors, hidden, context, previous), draft.logits)


def slow_total(model: RecurrentModel, record: FeatureRecord, anchors: list[int]) -> torch.Tensor:
    """Return the mean loss of the blocks at `anchors`, over the weights of their rows."""
    gamma, total, weights = model.config.block_size, torch.zeros(()), 0.0
    for anchor in anchors:
        rows = min(gamma, len(record.token_ids) - anchor - 1)
        read = record.token_ids[anchor : anchor + rows].tolist()
        target = record.last_hidden[anchor : anchor + rows] @ model.lm_head.weight.T
        draft = slow_logits(model, record, anchor, read)
        if model.config.method == "mtp":
            target = torch.nn.functional.one_hot(
                record.token_ids[anchor + 1 : anchor + 1 + rows], draft.shape[1]
            ).float()
        total = total + slow_loss(draft, target, soft=model.config.method == "eagle3", decay=DECAY)
        weights += sum(DECAY**row for row in range(rows))
    return total / weights


def gradients(model: RecurrentModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    own = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients_equal_slow_references(method: Method) -> None:
    model = loud(method)
    record = random_record(model.config, length=10, prompt=2, seed=3)
    anchors = [2, 5, 7]
    output = model(pack([record]), torch.tensor(anchors))
    sums = loss_sums(output, DECAY_ROWS, soft_labels=method == "eagle3")
    loss = sums.total(LossWeights(1.0, 0.0, 0.0, DECAY_ROWS))
    loss = loss / (output.valid * torch.tensor([DECAY**row for row in range(model.config.block_size)])).sum()
    expected = slow_total(model, record, anchors)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    found, wanted = gradients(model, loss), gradients(model, expected)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=2e-4, msg=name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, answers=32)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_training_equals_a_slow_step(method: Method, world: Path, tmp_path: Path) -> None:
    """One sequence a step and all its anchors; clipping by hand."""
    settings = toy_course(world, tmp_path, method, 4, seed=5).model_copy(
        update={"rows_per_step": 1, "row_tokens": 1, "anchors_per_row": 64, "decay_rows": DECAY_ROWS, "grad_clip": 0.05}
    )
    store, target = FeatureStore(world / "store"), read_target(world / "target")
    quick, slow = (build_model(settings, target, store.spec) for _ in range(2))
    assert isinstance(slow, RecurrentModel)
    for model in (quick, slow):
        shout(model, seed=4)
    trainer = Trainer(settings, quick, target, store, HERE)
    [row], _ = next(trainer._batches())
    trainer._train_step([row])
    # Not the sequence that repeats one token.
    assert len(row.token_ids.unique()) > 4

    record = FeatureRecord(row.token_ids, row.answer_mask, row.features, row.last_hidden)
    anchors = [place for place in range(3, len(row.token_ids) - 1) if row.answer_mask[place]]
    found = gradients(slow, slow_total(slow, record, anchors))
    norm = torch.stack([gradient.square().sum() for gradient in found.values()]).sum().sqrt()
    assert norm > settings.grad_clip
    own = {name: value for name, value in slow.named_parameters() if value.requires_grad}
    for name, value in own.items():
        value.grad = found[name] * settings.grad_clip / norm
    Optimiser(own, settings.weight_decay).step(settings.learning_rate)
    after = dict(quick.named_parameters())
    for name, value in own.items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=2e-4, msg=name)


@pytest.fixture(scope="module")
def rows(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    work = tmp_path_factory.mktemp("work")
    courses = {name: toy_course(world, work, name, 60, seed=1) for name in DRAFTERS}
    return {str(row["drafter"]): row for row in compared(world, courses, HERE)}


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_drafter_learns_the_tiny_target(name: str, rows: dict[str, dict[str, Any]]) -> None:
    row = rows[name]
    assert row["accepted_length"] >= 1.3
    assert row["untrained_length"] < 1.1
    assert 0 < row["gain_low_frac"] <= row["gain_frac"] <= row["gain_high_frac"]
    assert row["dspark_gain_low_frac"] <= row["dspark_gain_frac"] <= row["dspark_gain_high_frac"]


@pytest.mark.parametrize("method", METHODS)
def test_a_baseline_is_read_back_and_served_by_no_engine(method: Method, tmp_path: Path) -> None:
    model = loud(method)
    save_draft(model, tmp_path / "draft", Binding("", ""), torch.float32, with_tables=True)
    back = load_draft(tmp_path / "draft")
    assert back.config == model.config
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ArtifactError, match="a baseline that is evaluated without an engine"):
        require_served(tmp_path / "draft")


def test_a_baseline_has_nothing_to_calibrate(world: Path, tmp_path: Path) -> None:
    save_draft(loud("eagle3"), tmp_path / "draft", Binding("", ""))
    store = FeatureStore(world / "answers")
    with pytest.raises(ArtifactError, match="must be a DSpark draft"):
        calibrate(tmp_path / "draft", read_target(world / "target"), [store], 1, tmp_path / "out")


WRONG: dict[str, dict[str, object]] = {
    "num_hidden_layers": {"method": "eagle3", "num_hidden_layers": 2},
    "block_size": {"method": "mtp", "num_hidden_layers": 1, "block_size": 2},
}


@pytest.mark.parametrize("key", WRONG)
def test_a_shape_that_a_method_has_not_is_refused(key: str, world: Path) -> None:
    plain = toy_settings(world, 4).draft
    assert plain is not None
    with pytest.raises((ConfigError, ValueError), match=f"{key} of method"):
        DraftShape.model_validate(plain.model_dump() | WRONG[key])
