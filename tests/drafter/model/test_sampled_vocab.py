"""Scoring a sample of the vocabulary: the certain tokens are there, and sums keep their expectation."""

import torch

from sparktier.drafter.data.packing import pack, sample_anchors
from sparktier.drafter.model.sampled_vocab import VocabSample, sample_vocab
from sparktier.drafter.training.distribution_loss import row_losses
from sparktier.drafter.training.losses import loss_sums
from support.drafts import loud_model, random_record, tiny_config

VOCAB = 97


def drawn(seed: int, count: int = 30) -> VocabSample:
    return sample_vocab(count, VOCAB, torch.tensor([5, 60, 96, 60]), torch.Generator().manual_seed(seed))


def test_certain_tokens_are_always_there_with_weight_one() -> None:
    for seed in range(20):
        sample = drawn(seed)
        assert sample.ids.tolist() == sorted(set(sample.ids.tolist()))
        own = sample.index_of(torch.tensor([[5, 60], [96, 0]]))
        assert sample.ids[own].tolist() == [[5, 60], [96, 0]]
        assert float(sample.log_weights[own].abs().max()) == 0.0
        assert sample.ids[:20].tolist() == list(range(20))
        assert len(sample.ids) == 20 + 2 + 10


def test_weighted_sums_have_the_whole_vocabularys_expectation() -> None:
    values = torch.rand(VOCAB, generator=torch.Generator().manual_seed(1)) * torch.arange(VOCAB)
    sums = []
    for seed in range(4000):
        sample = drawn(seed)
        sums.append(float((sample.log_weights.exp() * values[sample.ids]).sum()))
    mean, spread = torch.tensor(sums).mean(), torch.tensor(sums).std() / 4000**0.5
    assert abs(float(mean - values.sum())) < 4 * float(spread)
    unweighted = torch.tensor([float(values[drawn(seed).ids].sum()) for seed in range(200)]).mean()
    assert float(unweighted) < 0.7 * float(values.sum())


def test_a_sample_of_all_tokens_gives_the_losses_of_none() -> None:
    config = tiny_config()
    model = loud_model(config)
    row = pack([random_record(config, 30, 4, 1), random_record(config, 25, 4, 2)])
    anchors = sample_anchors(row, 6, torch.Generator().manual_seed(0))
    everything = VocabSample(torch.arange(config.vocab_size), torch.zeros(config.vocab_size))
    whole, same = loss_sums(model(row, anchors), 4.0), loss_sums(model(row, anchors, everything), 4.0)
    torch.testing.assert_close(whole.total_variation, same.total_variation)
    torch.testing.assert_close(whole.cross_entropy, same.cross_entropy)


def test_a_sample_estimates_the_losses_and_trains_only_its_tokens() -> None:
    config = tiny_config()
    model = loud_model(config)
    row = pack([random_record(config, 30, 4, 1)])
    anchors = sample_anchors(row, 6, torch.Generator().manual_seed(0))
    whole = loss_sums(model(row, anchors), 4.0)
    estimates = []
    for seed in range(60):
        sample = sample_vocab(60, config.vocab_size, row.token_ids, torch.Generator().manual_seed(seed))
        estimates.append(float(loss_sums(model(row, anchors, sample), 4.0).total_variation.detach()))
    # Ratios of estimates are slightly off; without weights the same mean is off by more than a tenth.
    assert abs(sum(estimates) / 60 / float(whole.total_variation.detach()) - 1.0) < 0.05
    loss_sums(model(row, anchors, sample), 4.0).cross_entropy.backward()
    assert model.markov_head is not None
    moved = model.markov_head.markov_w2.weight.grad
    assert moved is not None
    hidden = torch.ones(config.vocab_size, dtype=torch.bool)
    hidden[sample.ids] = False
    assert hidden.any()
    assert float(moved[hidden].abs().max()) == 0.0
    assert float(moved[sample.ids].abs().min()) > 0.0


def test_indices_are_the_labels_that_the_losses_read() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(2))
    sample = drawn(3)
    tokens = sample.ids[torch.tensor([4, 21, 25])]
    surprise, _ = row_losses(logits[:, sample.ids], logits[:, sample.ids], sample.index_of(tokens))
    expected = logits[:, sample.ids].logsumexp(dim=1) - logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(surprise, expected)
