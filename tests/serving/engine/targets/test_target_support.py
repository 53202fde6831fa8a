"""Targets that a ladder can't serve losslessly are refused by family, with what serves them; others are not."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from sparktier.configs.errors import ArtifactError
from sparktier.configs.loading.loader import settings_from
from sparktier.serving.deployment.plan import plan_deployment
from sparktier.serving.engine.targets.target_support import TargetFacts, facts_of, require_supported, target_refusal

DENSE = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
}
FULL, SLIDING = "full_attention", "sliding_attention"

LADDERS_REFUSED: dict[str, dict[str, Any]] = {
    "qwen3-next": {"model_type": "qwen3_next", "layer_types": ["linear_attention"] * 3 + [FULL]},
    "qwen3.5 without layer types": {"model_type": "qwen3_5_moe", "text_config": {"full_attention_interval": 4}},
    "kimi-linear": {"model_type": "kimi_linear", "kv_lora_rank": 512, "linear_attn_config": {"kda_layers": [1, 2, 3]}},
    "mamba": {"model_type": "mamba", "state_size": 16},
    "mamba2": {"model_type": "mamba2", "state_size": 128},
    "falcon-mamba": {"model_type": "falcon_mamba"},
    "jamba": {"model_type": "jamba", "attn_layer_period": 8, "mamba_d_state": 16},
    "falcon-h1": {"model_type": "falcon_h1", "mamba_d_ssm": 1024},
    "nemotron-h": {"model_type": "nemotron_h", "hybrid_override_pattern": "M-M-M*-"},
    "nemotron-h inside an image model": {"model_type": "nano_vl", "llm_config": {"hybrid_override_pattern": "M-M*"}},
    "granite hybrid": {"model_type": "granitemoehybrid", "layer_types": ["mamba", "mamba", "attention", "mamba"]},
    "lfm2": {"model_type": "lfm2", "layer_types": ["conv", "conv", FULL, "conv"]},
    "minimax-01": {"model_type": "minimax", "attn_type_list": [0, 0, 0, 1]},
    "minicpm lightning": {"model_type": "minicpm_sala", "mixer_types": ["minicpm4", "lightning-attn"]},
    "an unknown name with mamba sizes": {"model_type": "something_new", "mamba_d_state": 128},
    "an unknown name with linear layers": {"model_type": "something_new", "layer_types": ["linear_attention", FULL]},
    "longcat n-gram": {"model_type": "longcat_flash", "kv_lora_rank": 512, "ngram_vocab_size_ratio": 78.0},
    "longcat n-gram, older keys": {"model_type": "longcat_flash", "oe_vocab_size_ratio": 78.0},
    "engram": {"model_type": "deepseek_v41", "engram_layer_ids": [2]},
    "deepseek-v4": {"model_type": "deepseek_v4", "compress_ratios": [0, 4, 128, 4]},
    "qwen-vl": {"model_type": "qwen3_vl", "text_config": {"rope_scaling": {"mrope_section": [24, 20, 20]}}},
}
TREES_REFUSED: dict[str, dict[str, Any]] = {
    "deepseek-v2": {"model_type": "deepseek_v2", "kv_lora_rank": 512},
    "deepseek-v3": {"model_type": "deepseek_v3", "kv_lora_rank": 512, "q_lora_rank": 1536},
    "minicpm3": {"model_type": "minicpm3", "kv_lora_rank": 256},
    "kimi-k2.5": {"model_type": "kimi_k25", "text_config": {"model_type": "deepseek_v3", "kv_lora_rank": 512}},
    "gpt-oss": {"model_type": "gpt_oss", "sliding_window": 128, "layer_types": [SLIDING, FULL] * 2},
    "gemma-2": {"model_type": "gemma2", "sliding_window": 2048},
    "gemma-3": {"model_type": "gemma3", "text_config": {"sliding_window": 1024, "sliding_window_pattern": 6}},
    "llama-4": {"model_type": "llama4_text", "attention_chunk_size": 2048},
    "mistral": {"model_type": "mistral", "sliding_window": 2048},
    "qwen with its window in use": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 1024,
        "max_window_layers": 2,
    },
}
SERVED: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 1024, "max_window_layers": 2},
    "qwen2 with its window above all layers": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 1024,
        "max_window_layers": 4,
    },
    "qwen3-moe": {"model_type": "qwen3_moe", "sliding_window": None, "num_experts": 4},
    "all layers see everything": {"model_type": "ernie4_5", "sliding_window": 1024, "layer_types": [FULL] * 4},
    "granite hybrid without mamba": {
        "model_type": "granitemoehybrid",
        "layer_types": ["attention"] * 4,
        "mamba_d_state": 256,
    },
    "minimax-m2": {"model_type": "minimax_m2", "attn_type_list": [1, 1, 1, 1]},
    "a window as long as the context": {"model_type": "phi3", "sliding_window": 4096},
    "llama": {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    "mixtral": {"model_type": "mixtral", "sliding_window": None, "num_local_experts": 8},
    "longcat without n-grams, by chain": {"model_type": "llama", "ngram_vocab_size_ratio": None},
}


@pytest.mark.parametrize("name", LADDERS_REFUSED)
@pytest.mark.parametrize("method", ["chain", "tree"])
def test_no_ladder_serves_what_only_sglangs_worker_commits(name: str, method: str) -> None:
    facts = facts_of({**DENSE, **LADDERS_REFUSED[name]})
    with pytest.raises(ArtifactError, match=f"{method} can't serve org/model losslessly: .*method dspark_native"):
        require_supported(facts, method, "org/model")
    assert target_refusal(facts, "dspark_native") is None
    assert target_refusal(facts, "none") is None


@pytest.mark.parametrize("name", TREES_REFUSED)
def test_trees_need_a_mask_over_all_that_a_row_sees(name: str) -> None:
    facts = facts_of({**DENSE, **TREES_REFUSED[name]})
    reason = target_refusal(facts, "tree")
    assert reason is not None
    assert "chain" in reason.split("use speculation.method")[1]
    assert target_refusal(facts, "chain") is None


@pytest.mark.parametrize("name", SERVED)
def test_what_can_be_served_is_not_refused(name: str) -> None:
    facts = facts_of({**DENSE, **SERVED[name]})
    assert target_refusal(facts, "tree") is None
    assert target_refusal(facts, "chain") is None


def test_every_family_that_sglang_keeps_states_for_is_known() -> None:
    from sglang.srt.configs import hybrid_arch

    kinds = [kind for _, kind in inspect.getmembers(hybrid_arch, inspect.isclass) if kind.__name__.endswith("Config")]
    # Inkling and MiniCPM have such layers only where their config lists them.
    optional = {"InklingModelConfig", "InklingMMConfig", "MiniCPMHybridConfig"}
    missed = [kind.__name__ for kind in kinds if not facts_of(kind().to_dict()).recurrent]
    assert len(kinds) > 20
    assert set(missed) <= optional


@pytest.mark.parametrize(
    ("family", "refused"), [("kimi-linear", True), ("longcat n-gram", True), ("deepseek-v3", False)]
)
def test_a_plan_refuses_the_target_too(tmp_path: Path, family: str, refused: bool) -> None:
    """Also where transformers can't lay the model out."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**DENSE, **(LADDERS_REFUSED | TREES_REFUSED)[family]}))
    settings = settings_from(
        {"model": {"path": "org/model"}, "speculation": {"method": "chain", "draft_path": "org/draft"}}
    )
    draft = tmp_path / "draft.json"
    draft.write_text(json.dumps({**DENSE, "model_type": "qwen3", "block_size": 5}))
    plan = plan_deployment(settings, model_config=config, draft_config=draft)
    assert ("method" in {row.name for row in plan.refusals}) is refused


class Layers(nn.Module):
    """A target with one attention layer, of which only its window matters here."""

    def __init__(self, window: int | None) -> None:
        from sglang.srt.layers.radix_attention import RadixAttention

        super().__init__()
        layer = RadixAttention.__new__(RadixAttention)
        nn.Module.__init__(layer)
        layer.sliding_window_size = window
        self.attention = layer


@pytest.mark.parametrize(
    ("changes", "window", "known"),
    [
        ({}, -1, TargetFacts()),
        ({}, None, TargetFacts()),
        ({}, 127, TargetFacts(windowed=True)),
        ({"mla": True}, -1, TargetFacts(latent=True)),
        ({"use_ngram_embedding": True}, -1, TargetFacts(token_history=True)),
        ({"use_engram": True}, -1, TargetFacts(token_history=True)),
        ({"model_is_mrope": True}, -1, TargetFacts(sectioned_positions=True)),
        ({"linear_attn_registry_result": ("spec", "config")}, -1, TargetFacts(recurrent=True)),
    ],
)
def test_a_rank_believes_sglang_where_the_config_says_nothing(
    changes: dict[str, Any], window: int | None, known: TargetFacts
) -> None:
    from transformers import PretrainedConfig

    from sparktier.serving.engine.targets.target_facts import loaded_facts

    config = SimpleNamespace(
        hf_config=PretrainedConfig(**DENSE),
        context_len=4096,
        is_draft_model=False,
        **{
            "use_ngram_embedding": False,
            "use_engram": False,
            "model_is_mrope": False,
            "linear_attn_registry_result": None,
            **changes,
        },
    )
    runner = SimpleNamespace(model_config=config, model=Layers(window), use_mla_backend=changes.get("mla", False))
    assert loaded_facts(runner) == known


@pytest.mark.parametrize("method", ["chain", "tree"])
def test_a_worker_refuses_before_it_loads_a_draft(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    from sparktier.serving.engine.rank_options import LadderOptions, RankOptions, TreeBounds
    from sparktier.serving.engine.speculation import worker

    tree = TreeBounds(rows=12, parents=4, children=4) if method == "tree" else None
    options = RankOptions(ladder=LadderOptions(short_tokens=2, tree=tree))
    for name, value in options.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(worker, "loaded_facts", lambda _runner: TargetFacts(recurrent=True))
    target = SimpleNamespace(model_runner=SimpleNamespace(model_config=SimpleNamespace(model_path="org/model")))
    with pytest.raises(ArtifactError, match="dspark_native"):
        worker.LadderWorker(target_worker=target, server_args=None)
