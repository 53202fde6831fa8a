"""doctor --plan: bytes against a real checkpoint's files and against sums done by hand, and each refusal."""

from pathlib import Path
from typing import Any

import pytest

from sparktier.configs.errors import ArtifactError, ConfigError
from sparktier.configs.loading.loader import load_settings, parse_overrides, settings_from
from sparktier.configs.settings.settings import Settings
from sparktier.serving.deployment.memory import (
    graph_table_bytes,
    graphs_of_a_size,
    kv_bytes_per_token,
    rank_memory,
    weight_bytes,
)
from sparktier.serving.deployment.model_sizes import ModelFacts, Role, model_facts, read_config
from sparktier.serving.deployment.plan import plan_deployment, plan_of
from support.tiny_moe import make_tiny_moe

DEPLOYMENTS = Path(__file__).resolve().parents[3] / "configs" / "deployments"
QWEN = "Qwen/Qwen3-235B-A22B"
FLASH = "deepseek-ai/DeepSeek-V4-Flash-DSpark"


@pytest.fixture(scope="module")
def qwen() -> ModelFacts:
    return model_facts(read_config(QWEN))


@pytest.fixture(scope="module")
def flash() -> ModelFacts:
    return model_facts(read_config(FLASH))


def settings_of(model: dict[str, Any] | None = None, **sections: Any) -> Settings:
    return settings_from({"model": {"path": QWEN, **(model or {})}, **sections})


def refused(settings: Settings, model: ModelFacts, draft: ModelFacts | None = None) -> set[str]:
    return {row.name for row in plan_of(settings, model, draft).refusals}


@pytest.mark.parametrize("file", sorted(DEPLOYMENTS.glob("*.yaml")), ids=lambda file: file.name)
def test_no_shipped_deployment_is_refused(file: Path) -> None:
    plan = plan_deployment(load_settings(file))
    assert plan.refusals == ()
    notes = [line for line in plan.lines if line.name == "reserved_gib"]
    assert [row.note for row in notes] == [""], "leave SGLang what it estimates that it needs"


def test_the_ladder_fits_attention_groups_over_two_nodes(qwen: ModelFacts) -> None:
    values = ("speculation.method=chain", "speculation.draft_path=/draft", "speculation.block_tokens=7")
    file = DEPLOYMENTS / "qwen3-235b-a22b-2-nodes-attention-dp.yaml"
    settings = load_settings(file, parse_overrides([*values, "replicas.moe_all_to_all=none"]))
    plan = plan_of(settings, qwen, None)
    assert plan.refusals == ()
    found = {line.name: line.value for line in plan.lines}
    # 1,024 requests of 8 rows in 8 groups, each of two ranks.
    assert found["most_rows_per_rank"] == 512
    assert found["enable_dp_lm_head"] == 1
    with pytest.raises(ConfigError, match="verifies whole blocks"):
        load_settings(file, parse_overrides(values))


def test_parameters_are_those_the_publishers_name(qwen: ModelFacts, flash: ModelFacts) -> None:
    assert round(sum(qwen.parameters.values()) / 1e9) == 235
    assert round(sum(flash.parameters.values()) / 1e9) == 284
    assert qwen.parameters[Role.EXPERTS] == 94 * 128 * 3 * 4096 * 1536


def test_one_rank_holds_as_many_bytes_as_the_files_of_a_real_checkpoint(tmp_path: Path) -> None:
    make_tiny_moe(tmp_path)
    model = model_facts(read_config(str(tmp_path)))
    files = list(tmp_path.glob("*.safetensors"))
    header = sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in files)
    settings = settings_of({"path": str(tmp_path), "dtype": "float32"})
    assert weight_bytes(settings, model, None) == sum(file.stat().st_size for file in files) - header


@pytest.mark.parametrize(("ranks", "experts", "groups"), [(8, 8, 1), (8, 2, 4), (16, 16, 8), (4, 1, 1)])
def test_weights_of_a_rank_by_hand(qwen: ModelFacts, ranks: int, experts: int, groups: int) -> None:
    settings = settings_of(
        {"dtype": "bfloat16"},
        replicas={"tensor_parallel": ranks, "expert_parallel": experts, "attention_data_parallel": groups},
    )
    hidden, attention = 4096, ranks // groups
    expert_rows = 128 // experts * 3 * hidden * (1536 // (ranks // experts))
    projections = 2 * hidden * 64 * 128 // attention + 2 * hidden * 128 * max(1, 4 // attention)
    per_layer = expert_rows + projections + hidden * 128 + 2 * hidden + 2 * 128
    vocabulary = 151936 * hidden // attention + 151936 * hidden // ranks
    assert weight_bytes(settings, qwen, None) == 2 * (94 * per_layer + vocabulary + hidden)


def test_redundant_experts_cost_their_share(qwen: ModelFacts) -> None:
    layout = {"tensor_parallel": 16, "expert_parallel": 16}
    plain = weight_bytes(settings_of(replicas=layout), qwen, None)
    more = settings_of(replicas={**layout, "sglang_args": {"ep_num_redundant_experts": 16}})
    assert weight_bytes(more, qwen, None) - plain == 94 * 3 * 4096 * 1536 * 2  # one more expert on every rank


def test_quantised_weights_shrink_all_but_vocabulary_norms_and_routers(qwen: ModelFacts) -> None:
    settings = settings_of()
    full, eight, four = (weight_bytes(settings, qwen, method) for method in (None, "fp8", "awq"))
    kept = 2 * sum(qwen.parameters[role] for role in (Role.EMBEDDING, Role.HEAD, Role.NORMS))
    assert (eight - kept) / (full - kept) == pytest.approx(0.5, abs=1e-3)
    assert (four - kept) / (full - kept) == pytest.approx(0.26, abs=1e-2)


@pytest.mark.parametrize(
    ("ranks", "groups", "kv_dtype", "heads", "each"),
    [(1, 1, "auto", 4, 2), (2, 1, "auto", 2, 2), (8, 1, "auto", 1, 2), (8, 4, "auto", 2, 2), (8, 8, "fp8_e4m3", 4, 1)],
)
def test_cache_of_a_token_by_hand(
    qwen: ModelFacts, ranks: int, groups: int, kv_dtype: str, heads: int, each: int
) -> None:
    settings = settings_of(
        {"kv_dtype": kv_dtype}, replicas={"tensor_parallel": ranks, "attention_data_parallel": groups}
    )
    assert kv_bytes_per_token(settings, qwen) == 2 * 94 * heads * 128 * each


def test_cache_of_a_latent_token_is_the_same_on_every_rank() -> None:
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    facts = ModelFacts({**config, "num_attention_heads": 128}, {}, {})
    for ranks in (1, 8):
        assert kv_bytes_per_token(settings_of(replicas={"tensor_parallel": ranks}), facts) == 61 * 576 * 2


def test_cache_of_a_deepseek_v4_token_by_hand(flash: ModelFacts) -> None:
    # 43 layers: 2 with the window only, 21 compressed by 4, 20 by 128. An entry: 448 fp8, 64 bfloat16, 8 of scales.
    window = 0.1 * (43 * 584 + 21 * (8 / 256) * 4 * (512 + 128) * 4)
    compressed = 21 * (584 + 128 + 4) / 4 + 20 * 584 / 128
    assert kv_bytes_per_token(settings_of(), flash) == pytest.approx(window + compressed)


def test_a_draft_takes_memory_and_cache(qwen: ModelFacts) -> None:
    small = model_facts(read_config("Qwen/Qwen3-0.6B"))
    layout = {"tensor_parallel": 8, "accelerator": "H200", "memory_frac": 0.8}
    speculation = {"method": "standalone", "draft_path": "Qwen/Qwen3-0.6B"}
    alone = rank_memory(settings_of(replicas=layout), qwen, None)
    drafted = rank_memory(settings_of(replicas=layout, speculation=speculation), qwen, small)
    assert drafted.kv_token - alone.kv_token == 2 * 28 * 1 * 128 * 2
    assert drafted.draft > 0
    assert alone.kv_tokens is not None
    assert drafted.kv_tokens is not None
    assert drafted.kv_tokens < alone.kv_tokens


def test_a_draft_in_the_checkpoint_is_three_more_layers(flash: ModelFacts) -> None:
    speculation = {"method": "dspark_native", "block_tokens": 5}
    plain = rank_memory(settings_of({"path": FLASH}), flash, None)
    drafted = rank_memory(settings_of({"path": FLASH}, speculation=speculation), flash, None)
    assert plain.draft == 0
    assert drafted.draft == pytest.approx(plain.weights * 3 / 43, rel=0.05)


def test_the_cache_fills_what_the_settings_leave(qwen: ModelFacts) -> None:
    layout = {"tensor_parallel": 8, "expert_parallel": 8, "accelerator": "H200", "memory_frac": 0.85}
    memory = rank_memory(settings_of(replicas=layout), qwen, None)
    assert memory.total is not None
    assert memory.kv_tokens is not None
    assert memory.total - memory.kv_token < memory.needed <= memory.total


GROUPS = {"attention_data_parallel": 1}


@pytest.mark.parametrize(
    ("name", "model", "sections"),
    [
        ("memory", {}, {"replicas": {"tensor_parallel": 2, "accelerator": "H100"}}),
        ("memory", {}, {"replicas": {"tensor_parallel": 8, "accelerator": "H200", "kv_tokens": 10_000_000}}),
        ("heads", {}, {"replicas": {"tensor_parallel": 6}}),
        ("kv_heads", {}, {"replicas": {"tensor_parallel": 6}}),
        ("experts", {}, {"replicas": {"tensor_parallel": 12, "expert_parallel": 12}}),
        ("expert_width", {}, {"replicas": {"tensor_parallel": 5}}),
        ("context_tokens", {"context_tokens": 65536}, {}),
        ("target_layer_ids", {}, {"training": {"target_layer_ids": [1, 93]}}),
        ("draft_path", {}, {"speculation": {"method": "dspark_native"}}),
        (
            "attention_backend",
            {},
            {
                "replicas": {"attention_backend": "flashinfer"},
                "speculation": {"method": "dspark_native", "verification": "compact"},
            },
        ),
    ],
)
def test_what_cannot_run_is_refused(
    qwen: ModelFacts, name: str, model: dict[str, Any], sections: dict[str, Any]
) -> None:
    assert name in refused(settings_of(model, **sections), qwen)
    assert not refused(settings_of(), qwen)


def test_fp8_blocks_must_fill_an_expert_slice() -> None:
    # The published failure: 1536 / 8 = 192 columns a rank are no multiple of 128.
    model = model_facts(read_config("Qwen/Qwen3-235B-A22B-FP8"))
    assert refused(settings_of(replicas={"tensor_parallel": 8}), model) == {"expert_width"}
    assert not refused(settings_of(replicas={"tensor_parallel": 8, "expert_parallel": 8}), model)


def test_drafts_must_fit_their_target(qwen: ModelFacts, flash: ModelFacts) -> None:
    standalone = settings_of(speculation={"method": "standalone", "draft_path": FLASH})
    assert refused(standalone, qwen, flash) == {"draft_path"}
    other_block = settings_of({"path": FLASH}, speculation={"method": "dspark_native", "block_tokens": 7})
    assert refused(other_block, flash) == {"block_tokens"}


def test_tables_of_penalties_take_from_the_cache(qwen: ModelFacts) -> None:
    layout = {"tensor_parallel": 8, "accelerator": "H200", "memory_frac": 0.8}

    def memory(**replicas: int) -> Any:
        speculation = {"method": "chain", "draft_path": QWEN}
        return rank_memory(settings_of(replicas={**layout, **replicas}, speculation=speculation), qwen, None)

    open_number, many = memory(), memory(max_running_requests=1023)
    assert open_number.penalties == 49 * 151936 * 5
    assert many.penalties == 1024 * 151936 * 5
    lost = (open_number.kv_tokens - many.kv_tokens) * many.kv_token
    assert lost == pytest.approx(many.penalties - open_number.penalties, abs=2 * many.kv_token)
    assert rank_memory(settings_of(replicas=layout), qwen, None).penalties == 0


def test_tables_of_graphs_are_told_as_sglang_allocates_them(qwen: ModelFacts) -> None:
    draft = ModelFacts({"num_hidden_layers": 1, "block_size": 5, "vocab_size": 151936}, {}, {})

    def tables(context_tokens: int, users: int | None = None, **speculation: Any) -> int:
        settings = settings_of(
            {"context_tokens": context_tokens},
            replicas={} if users is None else {"max_running_requests": users},
            speculation={"draft_path": QWEN, **speculation},
        )
        return graph_table_bytes(settings, qwen, draft)

    # Rows of 64 trees and of 64 drafts.
    assert tables(32_768, 64, method="tree", tree_rows=12) == (64 * 12 + 64 * 5) * 32_768 * 5
    assert tables(32_768, method="chain", block_tokens=3) == 48 * (4 + 3) * 32_768 * 5
    settings = settings_of(speculation={"draft_path": QWEN, "method": "chain"})
    assert "graph_tables_gib" in {line.name for line in plan_of(settings, qwen, draft).lines}
    assert graph_table_bytes(settings_of(), qwen, None) == 0


def test_graphs_are_counted_for_each_number_of_requests(qwen: ModelFacts) -> None:
    draft = ModelFacts({"num_hidden_layers": 1, "block_size": 5, "vocab_size": 151936}, {}, {})

    def graphs(replicas: dict[str, Any] | None = None, **speculation: Any) -> dict[str, int]:
        layout = {"attention_backend": "flashinfer", **(replicas or {})}
        settings = settings_of(replicas=layout, speculation={"draft_path": QWEN, **speculation})
        line = next(line for line in plan_of(settings, qwen, draft).lines if line.name == "graphs_of_a_size")
        found = graphs_of_a_size(settings, 5)
        assert line.value == sum(found.values())
        return found

    # A step without drafts, short chains, whole ones, and trees.
    assert graphs(method="tree") == {"draft": 2, "verify by rows in all": 2, "verify by rows of a request": 4}
    assert graphs(method="chain", block_tokens=2, short_tokens=2)["verify by rows of a request"] == 2
    assert graphs(method="tree", accept_rule="ratio")["draft"] == 1


def test_lengths_beyond_the_draft_s_block_are_cut_and_said(qwen: ModelFacts) -> None:
    draft = ModelFacts({"num_hidden_layers": 1, "block_size": 5, "vocab_size": 151936}, {}, {})

    def cut(**lengths: int) -> dict[str, object]:
        settings = settings_of(speculation={"method": "chain", "draft_path": QWEN, **lengths})
        return {line.name: line.value for line in plan_of(settings, qwen, draft).lines if line.section == "speculation"}

    assert cut(short_tokens=8) == {"short_tokens": 5}
    assert cut(block_tokens=9, short_tokens=5) == {"block_tokens": 5}
    assert cut(block_tokens=5, short_tokens=2) == {}


def test_a_dense_model_has_no_experts_to_share_out() -> None:
    dense = model_facts(read_config("Qwen/Qwen3-0.6B"))
    layout = {"tensor_parallel": 2, "expert_parallel": 2}
    assert refused(settings_of(replicas=layout), dense) == {"expert_parallel"}


def test_an_unknown_or_missing_config_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="--model-config"):
        read_config("nobody/unheard-of")
    odd = tmp_path / "config.json"
    odd.write_text('{"num_hidden_layers": 2, "model_type": "no such type"}')
    with pytest.raises(ArtifactError, match="no such type"):
        model_facts(read_config("nobody/unheard-of", odd))
