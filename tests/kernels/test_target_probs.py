"""Target distributions: the kept sets of SGLang's own sampler, ties included, and greedy rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparktier.kernels import target_probs as target_probs_module
from sparktier.kernels.noise import draw
from sparktier.kernels.target_probs import SamplingRows, greedy_tokens, target_probs

ROW = st.tuples(
    st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]),
    st.sampled_from([1, 2, 3, 5, 1 << 30]),
    st.sampled_from([0.05, 0.3, 0.5, 0.75, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
)


def one_row(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    """The slow reference: Python sorting with ids as tie-break, float64 sums over float32 probabilities."""
    if temperature == 0 or top_k == 1:
        best = max(range(len(logits)), key=lambda token: (float(logits[token]), -token))
        return [float(token == best) for token in range(len(logits))]
    probs = torch.softmax(logits.float() / torch.tensor(temperature), dim=0).tolist()
    ranked = sorted(range(len(probs)), key=lambda token: (-probs[token], token))
    kept, before = [], 0.0
    for rank, token in enumerate(ranked):
        if rank < top_k and (before <= top_p or top_p == 1) and probs[token] >= probs[ranked[0]] * min_p:
            kept.append(token)
        before += probs[token]
    mass = sum(probs[token] for token in kept)
    stays = set(kept)
    return [probs[token] / mass if token in stays else 0.0 for token in range(len(probs))]


def as_rows(params: list[tuple[float, int, float, float]], *, filters: bool = True) -> SamplingRows:
    temperatures, top_ks, top_ps, min_ps = (torch.tensor(part) for part in zip(*params, strict=True))
    if not filters:
        return SamplingRows(temperatures=temperatures)
    return SamplingRows(temperatures=temperatures, top_ks=top_ks, top_ps=top_ps, min_ps=min_ps)


@settings(max_examples=150)
@given(st.lists(ROW, min_size=1, max_size=6), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 2**31))
def test_equals_the_reference_with_ties(
    params: list[tuple[float, int, float, float]], dtype: torch.dtype, chance: int
) -> None:
    generator = torch.Generator().manual_seed(chance)
    logits = torch.randn(len(params), 9, generator=generator).to(dtype)
    logits[:, 5:] = logits[:, :4]  # every filter edge meets ties
    logits[0, 2] = -torch.inf  # as a grammar leaves it
    got = target_probs(logits=logits, sampling=as_rows(params))
    expected = torch.tensor([one_row(row, *knobs) for row, knobs in zip(logits, params, strict=True)])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-8)


@given(st.lists(ROW.filter(lambda row: row[1] <= 5), min_size=1, max_size=6), st.integers(0, 2**31))
def test_a_bound_on_top_k_changes_nothing(params: list[tuple[float, int, float, float]], chance: int) -> None:
    logits = torch.randn(len(params), 40, generator=torch.Generator().manual_seed(chance)).bfloat16()
    full = as_rows(params)
    bounded = SamplingRows(
        temperatures=full.temperatures, top_ks=full.top_ks, top_ps=full.top_ps, min_ps=full.min_ps, max_top_k=5
    )
    kept = target_probs(logits=logits, sampling=full), target_probs(logits=logits, sampling=bounded)
    torch.testing.assert_close(*kept, rtol=1e-6, atol=0)


def test_kept_sets_longer_than_the_lead_are_whole() -> None:
    """A large vocabulary is first looked at by its largest tokens alone, which some rows' kept sets outgrow."""
    generator = torch.Generator().manual_seed(0)
    knobs = [
        (temperature, top_k, top_p, min_p)
        for temperature in (0.3, 1.0)
        for top_k in (40, 6000, 1 << 30)
        for top_p in (0.3, 0.98, 1.0)
        for min_p in (0.0, 0.1)
    ]
    logits = torch.randn(len(knobs), 9000, generator=generator).bfloat16()  # its steps: many ties
    got = target_probs(logits=logits, sampling=as_rows(knobs))
    kept = (got > 0).sum(dim=1)
    assert kept.min() < 40
    assert ((kept > 40) & (kept < target_probs_module._LEAD)).any()
    assert ((kept > target_probs_module._LEAD) & (kept < 9000)).any()
    assert kept.max() == 9000
    expected = torch.tensor([one_row(row, *knob) for row, knob in zip(logits, knobs, strict=True)])
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-9)


def test_temperature_alone_and_min_p_alone_take_no_sort_and_agree_with_the_reference() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    knobs = [(0.0, 1 << 30, 1.0, 0.0), (0.5, 1 << 30, 1.0, 0.0), (1.0, 1 << 30, 1.0, 0.0), (2.0, 1 << 30, 1.0, 0.0)]
    expected = torch.tensor([one_row(row, *knob) for row, knob in zip(logits, knobs, strict=True)])
    torch.testing.assert_close(target_probs(logits=logits, sampling=as_rows(knobs, filters=False)), expected)
    min_p = SamplingRows(temperatures=torch.ones(4), min_ps=torch.tensor([0.0, 0.1, 0.5, 1.0]))
    expected = torch.tensor(
        [one_row(row, 1.0, 99, 1.0, float(low)) for row, low in zip(logits, min_p.min_ps, strict=True)]
    )
    torch.testing.assert_close(target_probs(logits=logits, sampling=min_p), expected)


def test_greedy_rows_take_the_lowest_id_among_tied_logits_and_survive_keyed_noise() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0]], dtype=torch.bfloat16)
    probs = target_probs(logits=logits, sampling=SamplingRows(temperatures=torch.tensor([0.0, 0.0])))
    assert greedy_tokens(logits=logits).tolist() == [1, 0]
    assert probs.tolist() == [[0, 1, 0], [1, 0, 0]]
    for seed in range(50):
        keys = torch.tensor([seed, seed])
        assert draw(weights=probs, seeds=keys, positions=keys).tolist() == [1, 0]


def test_greedy_reads_logits_where_the_softmax_ties_them() -> None:
    logits = torch.tensor([[0.0, 1e-9]])
    assert torch.softmax(logits, 1).unique().numel() == 1
    probs = target_probs(logits=logits, sampling=SamplingRows(temperatures=torch.ones(1), top_ks=torch.tensor([1])))
    assert probs.tolist() == [[0, 1]]


@pytest.mark.parametrize("chance", range(5))
def test_kept_sets_are_those_of_sglang(chance: int) -> None:
    sampler = pytest.importorskip("sglang.srt.layers.sampler")
    generator = torch.Generator().manual_seed(chance)
    rows = 64
    logits = torch.randn(rows, 300, generator=generator).bfloat16().float()  # bfloat16 steps: many ties
    sampling = SamplingRows(
        temperatures=0.3 + torch.rand(rows, generator=generator),
        top_ks=torch.randint(1, 60, (rows,), generator=generator),
        top_ps=0.2 + 0.8 * torch.rand(rows, generator=generator),
        min_ps=0.2 * torch.rand(rows, generator=generator),
    )
    probs = torch.softmax(logits / sampling.temperatures.unsqueeze(1), dim=1)
    theirs = sampler.top_k_top_p_min_p_sampling_from_probs_torch(
        probs, sampling.top_ks, sampling.top_ps, sampling.min_ps, True, None, None, return_filtered_probs=True
    )[1]
    # By rank: SGLang's sort is not stable, so which of two tied tokens at an edge it keeps is an accident.
    ours = target_probs(logits=logits, sampling=sampling).sort(dim=1, descending=True).values
    torch.testing.assert_close(ours, theirs / theirs.sum(1, keepdim=True), rtol=1e-5, atol=0)
