"""Our draft model against SGLang's own `models/dspark.py`, run in this process on the CPU from the same checkpoint.

Real upstream code: the model class and its weight loader, the projection and injection of target features
(`write_target_hidden_kv`), backbone, base logits, `draft_markov_block`, confidence head with STS. Ours: a stand-in for
the attention backend and KV pool (dense torch) and a one-rank topology. What remains for an engine test: the real
KV pool, request batching and the worker around it.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from sparktier.drafter.data.target import Binding
from sparktier.drafter.model.checkpoint import load_draft, save_draft
from sparktier.drafter.model.config import MarkovType
from sparktier.drafter.model.draft_model import DraftModel
from support.drafts import loud_model, tiny_config

TOLERANCE = 1e-4
CONTEXT_TOKENS = (11, 1, 4)

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="compares the torch paths of a CPU machine")


class DensePoolAndAttention:
    """One request's draft KV and bidirectional attention over it, in plain torch."""

    def __init__(self) -> None:
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}

    def set_kv_buffer(self, layer: Any, location: object, keys: Tensor, values: Tensor, *scales: object) -> None:
        self.stored[layer.layer_id] = (keys, values)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: object, save: bool = True) -> Tensor:
        keys, values = (torch.cat(pair) for pair in zip(self.stored[layer.layer_id], (k, v), strict=True))
        group = layer.tp_q_head_num // layer.tp_k_head_num
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        queries = q.view(-1, layer.tp_q_head_num, layer.head_dim)
        weights = (torch.einsum("qhd,khd->hqk", queries, keys) * layer.scaling).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values).flatten(1)


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Outside "static" mode SGLang builds the confidence head.
    monkeypatch.setenv("SGLANG_RAGGED_VERIFY_MODE", "compact")
    from sglang.srt.runtime_context import get_parallel

    group = SimpleNamespace(world_size=1, rank_in_group=0, all_gather=lambda tensor, dim=-1: tensor)
    with get_parallel().override(tp_size=1, tp_rank=0, tp_group=group, attn_tp_size=1, attn_tp_rank=0):
        yield


def upstream_model(folder: Path, tables: DraftModel) -> Any:
    """Build and load SGLang's class as its loader does, and lend it the target's tables."""
    from sglang.srt.models.dspark import Qwen3DSparkModel

    theirs = Qwen3DSparkModel(AutoConfig.from_pretrained(folder))
    theirs.load_weights(load_file(folder / "model.safetensors").items())
    head = SimpleNamespace(
        weight=tables.lm_head.weight, quant_method=None, org_vocab_size=tables.config.vocab_size, tp_size=1
    )
    theirs.attach_shared_modules(embed_tokens=tables.embed_tokens, lm_head=head)
    return theirs


def upstream_draft(theirs: Any, features: Tensor, anchor: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return SGLang's base logits, step logits, greedy tokens and STS-calibrated confidences of one block."""
    from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
    from sglang.srt.speculative.dspark_components.dspark_draft import DraftNoise, draft_markov_block

    backend, length, gamma = DensePoolAndAttention(), len(features), theirs.gamma
    places = torch.arange(length)
    theirs.write_target_hidden_kv(target_hidden=features, pool=backend, positions=places, cache_loc=places)
    ids = torch.tensor([anchor] + [theirs.config.mask_token_id] * (gamma - 1))
    batch = SimpleNamespace(forward_mode=SimpleNamespace(is_extend=lambda: False))
    with forward_context(ForwardContext(attn_backend=backend)):
        hidden = theirs(ids, length + torch.arange(gamma), batch).hidden_states
    base, _ = theirs.compute_base_logits(hidden)
    tokens, logits = draft_markov_block(
        markov_head=theirs.markov_head,
        base_logits=base[None],
        anchor_tokens=ids[:1],
        draft_hidden=hidden[None],
        step_temperatures=torch.zeros(1),
        noise=DraftNoise(key=0, offset=torch.zeros(1, dtype=torch.int64)),
        tp_sync=SimpleNamespace(sync=lambda site, value: value),
    )
    assert logits is not None
    calibrated, _ = theirs.compute_confidence(
        anchor_tokens=ids[:1], draft_tokens=tokens, confidence_features=hidden[None]
    )
    return base, logits[0], tokens[0], calibrated[0]


@torch.no_grad()
@pytest.mark.parametrize("markov", ["vanilla", "gated", "rnn"])
def test_same_checkpoint_gives_sglangs_logits_drafts_and_confidences(
    markov: MarkovType, tmp_path: Path, one_rank: None
) -> None:
    save_draft(loud_model(tiny_config(markov)), tmp_path / "draft", Binding("", ""), torch.float32, with_tables=True)
    ours = load_draft(tmp_path / "draft")
    theirs = upstream_model(tmp_path / "draft", ours)
    temperatures = torch.tensor([0.5, 1.0, 2.0, 1.5, 0.8])
    theirs.confidence_head.sts_temperatures = temperatures
    drafted = set()
    for seed, length in enumerate(CONTEXT_TOKENS):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(length, ours.config.feature_size, generator=generator)
        base, logits, tokens, calibrated = upstream_draft(theirs, features, anchor=seed + 5)
        context = ours.context(features[None], torch.arange(length)[None])
        mask = torch.ones(1, 5, length + 5, dtype=torch.bool)
        hidden = ours.blocks(torch.tensor([[seed + 5]]), torch.tensor([[length]]), context, mask)[0]
        draft = ours.draft(hidden, torch.tensor([seed + 5]))
        torch.testing.assert_close(ours.base_logits(hidden)[0], base, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(draft.logits[0], logits, atol=TOLERANCE, rtol=0)
        assert draft.tokens[0].tolist() == tokens.tolist()
        assert draft.confidence is not None
        torch.testing.assert_close(torch.sigmoid(draft.confidence[0] / temperatures), calibrated, atol=1e-5, rtol=0)
        drafted.update(tokens.tolist())
    assert len(drafted) > 3, "drafts that are all alike prove little"


def test_sglang_reads_the_drafts_run_time_settings(tmp_path: Path) -> None:
    from sglang.srt.speculative.dspark_components.dspark_config import resolve_runtime_config

    config = tiny_config("gated")
    save_draft(loud_model(config), tmp_path / "draft", Binding("", ""))
    resolved = resolve_runtime_config(
        draft_hf_config=AutoConfig.from_pretrained(tmp_path / "draft"),
        speculative_num_draft_tokens=None,
        target_vocab_size=config.vocab_size,
    )
    assert (resolved.gamma, resolved.verify_num_draft_tokens, resolved.mask_token_id) == (5, 6, 96)
