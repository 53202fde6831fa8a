"""Replay of stored answers against speculative decoding really carried out, and rounds against a slow walk."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, ttest_ind
from torch import Tensor

from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.evaluation.replay import likeliest_children, replay
from sparktier.drafter.evaluation.rounds import (
    Rounds,
    conditional_acceptance,
    confident_prefix,
    distinct_4gram_frac,
    joined,
    walk,
)
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.kernels.accept import accept_ratio
from support.drafts import loud_model, random_record, tiny_config

PREFIX, TRIALS = 4, 800


def chain_states(model: DraftModel) -> Tensor:
    """Return a last hidden state per token: the target is a Markov chain through the model's own head."""
    return torch.randn(model.config.vocab_size, model.config.hidden_size, generator=torch.Generator().manual_seed(8))


def chain_record(model: DraftModel, tokens: Tensor, prompt: int) -> FeatureRecord:
    """Return the record of tokens [n]; features depend on the token alone, so any prefix can be continued."""
    table = torch.randn(model.config.vocab_size, model.config.feature_size, generator=torch.Generator().manual_seed(9))
    return FeatureRecord(tokens, torch.arange(len(tokens)) >= prompt, table[tokens], chain_states(model)[tokens])


def next_probs(model: DraftModel, temperature: float) -> Tensor:
    return (model.base_logits(chain_states(model)) / temperature).softmax(dim=-1)


def block_hidden(model: DraftModel, prefix: Tensor) -> Tensor:
    record = chain_record(model, prefix, 0)
    context = model.context(record.features[None], torch.arange(len(prefix))[None])
    seen = torch.arange(len(prefix)).expand(5, -1) < len(prefix) - 1
    mask = torch.cat((seen, torch.ones(5, 5, dtype=torch.bool)), dim=1)[None]
    return model.blocks(prefix[None, -1:], torch.tensor([[len(prefix) - 1]]), context, mask)[0]


def real_rounds(model: DraftModel, prefix: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Draft from q and verify against p, many times from one prefix: accepted counts, confidences, drafted tokens."""
    generator = torch.Generator().manual_seed(1)
    hidden = block_hidden(model, prefix).expand(TRIALS, -1, -1)
    anchors = prefix[-1].expand(TRIALS)
    draft = model.draft(
        hidden,
        anchors,
        lambda logits: torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(1),
    )
    chain = next_probs(model, temperature)
    outcome = accept_ratio(
        drafts=draft.tokens,
        draft_probs=(draft.logits / temperature).softmax(-1),
        target_probs=chain[torch.cat((anchors[:, None], draft.tokens), dim=1)],
        row_counts=torch.full((TRIALS,), 6),
        seeds=torch.arange(TRIALS),
        positions=torch.arange(6).expand(TRIALS, -1),
    )
    assert draft.confidence is not None
    return outcome.accepted, draft.confidence, draft.tokens


def replayed_rounds(model: DraftModel, prefix: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Let the target alone continue the prefix, many times, and replay the round at its end."""
    generator = torch.Generator().manual_seed(2)
    chain, rounds = next_probs(model, temperature), []
    for trial in range(TRIALS):
        tokens = prefix.tolist()
        while len(tokens) < len(prefix) + 6:
            tokens.append(int(torch.multinomial(chain[tokens[-1]], 1, generator=generator)))
        record = chain_record(model, torch.tensor(tokens), len(prefix) - 1)
        result = replay(model, record, temperature, seed=trial)
        assert int(result.anchors[0]) == len(prefix) - 1
        rounds.append((result.accepted[0], result.confidence[0], result.drafted[0]))
    accepted, confidence, drafted = (torch.stack(column) for column in zip(*rounds, strict=True))
    return accepted, confidence, drafted


def same_distribution(first: Tensor, second: Tensor) -> float:
    """Return the p-value that two samples of tokens [n] have one distribution; rare tokens are pooled."""
    values, counts = torch.cat((first, second)).unique(return_counts=True)
    common = values[counts > 25]
    cells = [torch.stack([(sample == value).sum() for value in common]) for sample in (first, second)]
    table = torch.stack([torch.cat((row, (len(first) - row.sum()).view(1))) for row in cells])
    return float(chi2_contingency(table.numpy() + 1).pvalue)


@torch.no_grad()
def test_sampled_replay_has_the_distribution_of_real_speculative_decoding() -> None:
    # Few tokens, so that a wrong distribution of the rejected draft shows; by the factor many drafts are accepted.
    model = loud_model(tiny_config("rnn", vocab_size=8, mask_token_id=7), seed=3)
    model.lm_head.weight.mul_(0.7)
    prefix = torch.tensor([5, 1, 4, 2])
    assert len(prefix) == PREFIX
    real, real_confidence, real_drafts = real_rounds(model, prefix, 1.0)
    played, played_confidence, played_drafts = replayed_rounds(model, prefix, 1.0)
    # Runs of three or more are rare; pooled, every cell is large enough for the approximation.
    counts = [torch.bincount(values.clamp(max=3), minlength=4).numpy() for values in (real, played)]
    assert min(counts[0]) > 5, counts
    assert chi2_contingency(np.stack(counts)).pvalue > 1e-3, counts
    for row in range(1, 5):
        assert ttest_ind(real_confidence[:, row], played_confidence[:, row]).pvalue > 1e-3, row
    # Drafted tokens, the rejected one and those after it included, have the drafter's own distribution.
    for row in range(3):
        assert same_distribution(real_drafts[:, row], played_drafts[:, row]) > 1e-3, row
    # The same test sees a wrong rule: acceptance of the stored token as if the draft had proposed it.
    wrong = torch.bincount((played + 1).clamp(max=3), minlength=4).numpy()
    assert chi2_contingency(np.stack((counts[0] + 1, wrong + 1))).pvalue < 1e-9


def slow_greedy(model: DraftModel, record: FeatureRecord, anchor: int) -> int:
    """Draft greedily at one anchor and count the leading tokens that the answer has too."""
    context = model.context(record.features[None], torch.arange(len(record.token_ids))[None])
    seen = torch.arange(len(record.token_ids)).expand(5, -1) < anchor
    mask = torch.cat((seen, torch.ones(5, 5, dtype=torch.bool)), dim=1)[None]
    hidden = model.blocks(record.token_ids[None, anchor : anchor + 1], torch.tensor([[anchor]]), context, mask)[0]
    count = 0
    for k, token in enumerate(model.draft(hidden, record.token_ids[anchor : anchor + 1]).tokens[0].tolist()):
        at = anchor + k + 1
        if at >= len(record.token_ids) or not record.answer_mask[at] or token != int(record.token_ids[at]):
            break
        count += 1
    return count


@torch.no_grad()
def test_greedy_replay_equals_drafting_at_each_anchor() -> None:
    model = loud_model(tiny_config("vanilla"), seed=3)
    record = random_record(model.config, 70, 3, 5)
    # Plant the drafter's own words in the answer, so that runs of every length occur.
    for anchor in (8, 15, 28, 41, 58):
        hidden = block_hidden_at(model, record, anchor)
        drafted = model.draft(hidden, record.token_ids[anchor : anchor + 1]).tokens[0]
        record.token_ids[anchor + 1 : anchor + 1 + anchor % 6] = drafted[: anchor % 6]
    record.answer_mask[50] = False
    result = replay(model, record, 0.0, seed=0)
    assert result.accepted.tolist() == [slow_greedy(model, record, int(anchor)) for anchor in result.anchors]
    assert set(result.accepted.tolist()) >= {0, 2, 3, 4, 5}
    ends = [50 if anchor < 50 else 70 for anchor in result.anchors.tolist()]
    assert result.remaining.tolist() == [end - a - 1 for end, a in zip(ends, result.anchors.tolist(), strict=True)]


def block_hidden_at(model: DraftModel, record: FeatureRecord, anchor: int) -> Tensor:
    context = model.context(record.features[None], torch.arange(len(record.token_ids))[None])
    seen = torch.arange(len(record.token_ids)).expand(5, -1) < anchor
    mask = torch.cat((seen, torch.ones(5, 5, dtype=torch.bool)), dim=1)[None]
    return model.blocks(record.token_ids[None, anchor : anchor + 1], torch.tensor([[anchor]]), context, mask)[0]


@torch.no_grad()
def test_children_are_those_of_accepted_parents() -> None:
    model = loud_model(tiny_config("gated"), seed=3)
    record = random_record(model.config, 30, 2, 5)
    children = likeliest_children(model, record, 0.7)
    expected_q, expected_accepted = [], []
    for anchor in range(2, 29):
        state, previous, alive = None, record.token_ids[anchor : anchor + 1], True
        hidden = block_hidden_at(model, record, anchor)
        assert model.markov_head is not None
        for k in range(5):
            if not alive or anchor + k + 1 >= 30:
                break
            bias, state = model.markov_head.step(previous, hidden[:, k], state)
            q = ((model.base_logits(hidden[:, k]) + bias) / 0.7).softmax(-1)[0]
            best = q.argsort(descending=True)[:8]
            previous = record.token_ids[anchor + k + 1 : anchor + k + 2]
            expected_q += q[best].tolist()
            expected_accepted += (best == previous).tolist()
            alive = bool((best == previous).any())
    assert children.q.tolist() == pytest.approx(expected_q, abs=1e-5)
    assert children.accepted.tolist() == expected_accepted


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 4), st.integers(1, 29))
def test_walk_commits_every_token_once(accepted: list[int], longest: int, split: int) -> None:
    """The answer is anchors 0..n-1 and a last token, cut in two by a gap that no block may cross."""
    count = len(accepted)
    anchors = [a if a < split else a + 3 for a in range(count)]
    ends = [min(split, count) if a < split else count + 3 for a in anchors]
    remaining = [end - a for end, a in zip(ends, anchors, strict=True)]
    reachable = [min(value, room) for value, room in zip(accepted, remaining, strict=True)]
    rounds = walk(
        np.array(anchors), np.array(reachable), np.array(remaining), np.zeros((count, 4)), np.full(count, longest)
    )
    expected, place = [], 0
    while place < count:
        kept = min(reachable[place], longest)
        bonus = 1 if remaining[place] > kept else 0
        expected.append((kept, min(longest, remaining[place]), kept + bonus))
        following = [i for i, a in enumerate(anchors) if a >= anchors[place] + kept + 1]
        place = following[0] if following else count
    got = zip(rounds.accepted.tolist(), rounds.offered.tolist(), rounds.committed.tolist(), strict=True)
    assert list(got) == expected


def rounds_of(accepted: list[int], offered: list[int]) -> Rounds:
    places, kept = np.arange(len(accepted)), np.array(accepted)
    return Rounds(places, kept, np.array(offered), kept + 1, np.zeros((len(accepted), 3)))


def test_conditional_acceptance_counts_only_rows_that_were_reached_and_offered() -> None:
    rounds = joined([rounds_of([0, 1, 3], [3, 3, 3]), rounds_of([1], [1])])
    assert conditional_acceptance(rounds) == pytest.approx([3 / 4, 1 / 2, 1.0])
    assert np.isnan(conditional_acceptance(rounds_of([0], [3]))[1])
    assert rounds.prefixes().tolist()[1:3] == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert len(rounds.whole().accepted) == 3


def test_confident_prefix_ends_at_the_first_doubt() -> None:
    confidence = np.array([[0.9, 0.4, 0.9], [0.1, 0.9, 0.9], [0.9, 0.9, 0.9]])
    assert confident_prefix(confidence, 0.5).tolist() == [1, 0, 3]
    assert confident_prefix(confidence, 0.0).tolist() == [3, 3, 3]


def test_distinct_4grams() -> None:
    assert distinct_4gram_frac([1, 2, 3, 4, 5]) == 1.0
    assert distinct_4gram_frac([1] * 10) == pytest.approx(1 / 7)
    assert distinct_4gram_frac([1, 2]) == 1.0
