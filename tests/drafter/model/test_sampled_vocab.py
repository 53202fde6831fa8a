"""Scoring some columns of the vocabulary: the certain ones are there, and sums keep their expectation."""

import torch

from sparktier.drafter.data.packing import pack, sample_anchors
from sparktier.drafter.model.sampled_vocab import Columns, draw_columns
from sparktier.drafter.training.distribution_loss import row_losses
from sparktier.drafter.training.losses import loss_sums
from support.drafts import loud_model, random_record, tiny_config

VOCAB = 97


def drawn(seed: int, count: int = 30) -> Columns:
    return draw_columns(count, VOCAB, torch.tensor([5, 60, 96, 60]), torch.Generator().manual_seed(seed))


def test_certain_columns_are_always_there_and_stand_for_themselves() -> None:
    for seed in range(20):
        columns = drawn(seed)
        assert columns.ids.tolist() == sorted(set(columns.ids.tolist()))
        own = columns.places(torch.tensor([[5, 60], [96, 0]]))
        assert columns.ids[own].tolist() == [[5, 60], [96, 0]]
        assert float(columns.log_weights[own].abs().max()) == 0.0
        assert columns.ids[:20].tolist() == list(range(20))
        assert len(columns.ids) == 20 + 2 + 10


def test_weighted_sums_have_the_whole_vocabularys_expectation() -> None:
    values = torch.rand(VOCAB, generator=torch.Generator().manual_seed(1)) * torch.arange(VOCAB)
    sums = []
    for seed in range(4000):
        columns = drawn(seed)
        sums.append(float((columns.log_weights.exp() * values[columns.ids]).sum()))
    mean, spread = torch.tensor(sums).mean(), torch.tensor(sums).std() / 4000**0.5
    assert abs(float(mean - values.sum())) < 4 * float(spread)
    unweighted = torch.tensor([float(values[drawn(seed).ids].sum()) for seed in range(200)]).mean()
    assert float(unweighted) < 0.7 * float(values.sum())


def test_all_columns_give_the_losses_of_no_columns() -> None:
    config = tiny_config()
    model = loud_model(config)
    row = pack([random_record(config, 30, 4, 1), random_record(config, 25, 4, 2)])
    anchors = sample_anchors(row, 6, torch.Generator().manual_seed(0))
    everything = Columns(torch.arange(config.vocab_size), torch.zeros(config.vocab_size))
    whole, same = loss_sums(model(row, anchors), 4.0), loss_sums(model(row, anchors, everything), 4.0)
    torch.testing.assert_close(whole.total_variation, same.total_variation)
    torch.testing.assert_close(whole.cross_entropy, same.cross_entropy)


def test_some_columns_estimate_the_losses_and_train_only_what_they_show() -> None:
    config = tiny_config()
    model = loud_model(config)
    row = pack([random_record(config, 30, 4, 1)])
    anchors = sample_anchors(row, 6, torch.Generator().manual_seed(0))
    whole = loss_sums(model(row, anchors), 4.0)
    estimates = []
    for seed in range(60):
        columns = draw_columns(60, config.vocab_size, row.token_ids, torch.Generator().manual_seed(seed))
        estimates.append(float(loss_sums(model(row, anchors, columns), 4.0).total_variation.detach()))
    # Ratios of estimates are slightly off; without weights the same mean is off by more than a tenth.
    assert abs(sum(estimates) / 60 / float(whole.total_variation.detach()) - 1.0) < 0.05
    loss_sums(model(row, anchors, columns), 4.0).cross_entropy.backward()
    assert model.markov_head is not None
    moved = model.markov_head.markov_w2.weight.grad
    assert moved is not None
    hidden = torch.ones(config.vocab_size, dtype=torch.bool)
    hidden[columns.ids] = False
    assert hidden.any()
    assert float(moved[hidden].abs().max()) == 0.0
    assert float(moved[columns.ids].abs().min()) > 0.0


def test_places_are_the_labels_that_the_losses_read() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(2))
    columns = drawn(3)
    tokens = columns.ids[torch.tensor([4, 21, 25])]
    surprise, _ = row_losses(logits[:, columns.ids], logits[:, columns.ids], columns.places(tokens))
    expected = logits[:, columns.ids].logsumexp(dim=1) - logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(surprise, expected)
