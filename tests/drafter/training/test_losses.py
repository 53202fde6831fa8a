"""Losses and labels against references written with plain Python numbers, one row at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparktier.drafter.data.packing import FeatureRecord, block_labels, pack, plan_rows, sample_anchors
from sparktier.drafter.model.draft_model import BlockOutput
from sparktier.drafter.training.distribution_loss import CHUNK_ROWS, row_losses
from sparktier.drafter.training.losses import LossWeights, loss_sums, row_weights, weight_sum
from support.drafts import loud_model, random_record, tiny_config


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    mass = [math.exp(x - top) for x in logits]
    return [x / sum(mass) for x in mass]


def random_output(seed: int, blocks: int = 3, gamma: int = 4, vocab: int = 6, confidence: bool = True) -> BlockOutput:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, gamma + 1, (blocks, 1), generator=generator)
    return BlockOutput(
        draft_logits=torch.randn(blocks, gamma, vocab, generator=generator) * 2,
        target_logits=torch.randn(blocks, gamma, vocab, generator=generator) * 2,
        tokens=torch.randint(0, vocab, (blocks, gamma), generator=generator),
        valid=torch.arange(gamma) < lengths,
        confidence=torch.randn(blocks, gamma, generator=generator) if confidence else None,
    )


def slow_sums(output: BlockOutput) -> dict[str, float]:
    """Sum equations 8 to 10 of the paper with the weights of DeepSpec's code."""
    sums = dict.fromkeys(("cross_entropy", "total_variation", "confidence", "length", "blocks"), 0.0)
    for block in range(len(output.tokens)):
        survival, expected = 1.0, 1.0
        for k in range(output.tokens.shape[1]):
            if not output.valid[block, k]:
                break
            draft = softmax(output.draft_logits[block, k].tolist())
            target = softmax(output.target_logits[block, k].tolist())
            weight = math.exp(-k / 4.0)
            distance = sum(abs(a - b) for a, b in zip(draft, target, strict=True))
            label = 1 - 0.5 * distance
            survival *= label
            expected += survival
            sums["cross_entropy"] -= weight * math.log(draft[int(output.tokens[block, k])])
            sums["total_variation"] += weight * distance
            if output.confidence is not None:
                guess = 1 / (1 + math.exp(-float(output.confidence[block, k])))
                sums["confidence"] -= weight * (label * math.log(guess) + (1 - label) * math.log(1 - guess))
        if output.valid[block, 0]:
            sums["length"] += expected
            sums["blocks"] += 1
    return sums


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_losses_equal_the_slow_reference(seed: int, confidence: bool) -> None:
    output = random_output(seed, confidence=confidence)
    sums = loss_sums(output, decay_rows=4.0)
    for name, expected in slow_sums(output).items():
        assert float(getattr(sums, name)) == pytest.approx(expected, abs=1e-4), name
    weights = LossWeights()
    slow = slow_sums(output)
    total = 0.1 * slow["cross_entropy"] + 0.9 * slow["total_variation"] + 1.0 * slow["confidence"]
    assert float(sums.total(weights)) == pytest.approx(total, abs=1e-4)


def test_the_label_is_the_acceptance_of_ratio_rejection() -> None:
    """Monte Carlo of the paper's rule: draw from q, accept with min(1, p/q)."""
    generator = torch.Generator().manual_seed(3)
    output = random_output(3, blocks=1, gamma=1)
    output.valid[:] = True
    q, p = output.draft_logits[0, 0].softmax(0), output.target_logits[0, 0].softmax(0)
    drawn = torch.multinomial(q, 200_000, replacement=True, generator=generator)
    accepted = torch.rand(200_000, generator=generator) < (p / q)[drawn]
    label = float(loss_sums(output, 4.0).accepted[0])
    assert label == pytest.approx(float(accepted.float().mean()), abs=0.005)


@pytest.mark.parametrize("rows", [1, CHUNK_ROWS, 2 * CHUNK_ROWS + 3])
def test_chunked_losses_have_autograds_gradients(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    draft = torch.randn(rows, 11, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randn(rows, 11, dtype=torch.float64, generator=generator)
    tokens = torch.randint(0, 11, (rows,), generator=generator)
    shares = torch.rand(2, rows, dtype=torch.float64, generator=generator)
    surprise, distance = row_losses(draft, target, tokens)
    (gradient,) = torch.autograd.grad((shares[0] * surprise + shares[1] * distance).sum(), draft)
    plain_surprise = torch.nn.functional.cross_entropy(draft, tokens, reduction="none")
    plain_distance = (draft.softmax(-1) - target.softmax(-1)).abs().sum(-1)
    (expected,) = torch.autograd.grad((shares[0] * plain_surprise + shares[1] * plain_distance).sum(), draft)
    torch.testing.assert_close(surprise, plain_surprise)
    torch.testing.assert_close(distance, plain_distance)
    torch.testing.assert_close(gradient, expected)


def test_confidence_loss_never_moves_the_draft() -> None:
    output = random_output(5)
    draft, guess = output.draft_logits.requires_grad_(), output.confidence
    assert guess is not None
    guess.requires_grad_()
    loss_sums(output, 4.0).confidence.backward()
    assert guess.grad is not None
    assert draft.grad is None


def test_weights_are_the_codes_and_not_the_papers() -> None:
    row = row_weights(torch.ones(1, 7, dtype=torch.bool), 4.0)[0].tolist()
    assert row == pytest.approx([math.exp(-k / 4) for k in range(7)])


def test_sums_over_rows_equal_the_sum_over_one_long_row() -> None:
    model = loud_model(tiny_config("vanilla"))
    records = [random_record(model.config, 12, 2, seed) for seed in range(3)]
    anchors = torch.tensor([2, 6, 10])
    alone = [loss_sums(model(pack([record]), anchors), 4.0) for record in records]
    together = loss_sums(model(pack(records), torch.cat([anchors + 12 * i for i in range(3)])), 4.0)
    for name in ("cross_entropy", "total_variation", "confidence", "length", "blocks"):
        split = sum(float(getattr(sums, name)) for sums in alone)
        assert float(getattr(together, name)) == pytest.approx(split, rel=1e-4), name
    labels = block_labels(pack(records), torch.cat([anchors + 12 * i for i in range(3)]), 5)
    parts = sum(weight_sum(block_labels(pack([record]), anchors, 5), 4.0) for record in records)
    assert weight_sum(labels, 4.0) == pytest.approx(parts)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_labels_and_anchors_follow_their_definition(data: st.DataObject) -> None:
    """Anchor: an answer token whose successor is one too. Row k: offset k+1, valid up to the answer's first gap."""
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    config = tiny_config()
    records = []
    for seed, length in enumerate(lengths):
        record = random_record(config, length, 0, seed)
        mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=length, max_size=length)))
        records.append(FeatureRecord(record.token_ids, mask, record.features, record.last_hidden))
    row = pack(records)
    place = [(i, j) for i, record in enumerate(records) for j in range(len(record.token_ids))]
    allowed = [
        at
        for at, (i, j) in enumerate(place)
        if j + 1 < lengths[i] and records[i].answer_mask[j] and records[i].answer_mask[j + 1]
    ]
    anchors = sample_anchors(row, 100, torch.Generator().manual_seed(0))
    assert anchors.tolist() == allowed
    labels = block_labels(row, anchors, 3)
    for b, anchor in enumerate(allowed):
        i, j = place[anchor]
        alive = True
        for k in range(3):
            alive = alive and j + k + 1 < lengths[i] and bool(records[i].answer_mask[j + k + 1])
            assert bool(labels.valid[b, k]) == alive
            if alive:
                assert labels.tokens[b, k] == records[i].token_ids[j + k + 1]
                assert labels.sources[b, k] == anchor + k


def test_anchors_are_drawn_evenly_and_without_repeats() -> None:
    row = pack([random_record(tiny_config(), 21, 0, 0)])
    counts = torch.zeros(21)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        anchors = sample_anchors(row, 5, generator)
        assert len(set(anchors.tolist())) == 5
        counts[anchors] += 1
    expected = 2000 * 5 / 20
    assert counts[20] == 0
    # Five standard deviations of a binomial count.
    assert (counts[:20] - expected).abs().max() < 5 * math.sqrt(expected * 0.75)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(5, 40))
def test_rows_hold_every_sequence_once_in_order_and_within_the_limit(lengths: list[int], limit: int) -> None:
    order = list(reversed(range(len(lengths))))
    rows = plan_rows(lengths, order, limit)
    assert [index for row in rows for index in row] == order
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        assert len(row) == 1 or sum(lengths[i] for i in row) <= limit
        if following:
            assert sum(lengths[i] for i in row) + lengths[following[0]] > limit
