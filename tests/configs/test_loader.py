"""Loading settings: good files load, and every malformed one gives all of its problems, none of them a traceback."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from sparktier.configs.errors import ConfigError
from sparktier.configs.loader import load_settings, parse_overrides, settings_from
from sparktier.configs.settings import Settings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
MODEL = "model: {path: demo}\n"

# Text of a file, and the path of every problem it must give, in any order.
MALFORMED = {
    "empty": ("", ["file"]),
    "a list": ("- model\n", ["file"]),
    "bare text": ("hello", ["file"]),
    "broken syntax": ("model: {path: demo\nserver:\n", ["line 2, column 7"]),
    "tab indent": ("model:\n\tpath: demo\n", ["line 2, column 1"]),
    "unknown tag": (MODEL + "server: !!python/object:os.system {}\n", ["line 2, column 9"]),
    "control character": (MODEL + "server: {host: '\x01'}\n", ["file"]),
    "unhashable key": (MODEL + "? [a, b]\n: 1\n", ["line 2, column 3"]),
    "unending brackets": ("model: " + "[" * 5000, ["file"]),
    "anchor inside itself": (
        MODEL + "replicas: {sglang_args: {log_level: &a [*a]}}\n",
        ["replicas.sglang_args.log_level"],
    ),
    "key written twice": (MODEL + "server:\n  port: 1\n  port: 2\n", ["line 4"]),
    "written twice and wrong": (MODEL + "server:\n  port: 1\n  port: 0\n", ["line 4", "server.port"]),
    "no model": ("server: {port: 80}\n", ["model"]),
    "no model path": ("model: {dtype: auto}\n", ["model.path"]),
    "ambiguous path": ("model: {path: models}\n", ["model.path"]),
    "section is a value": ("model: demo\n", ["model"]),
    "section is null": (MODEL + "server:\n", ["server"]),
    "misspelt section": (MODEL + "sever: {port: 80}\n", ["sever"]),
    "misspelt key": (MODEL + "replicas: {tensor_paralel: 8, expert_parallel: 4}\n", ["replicas.tensor_paralel"]),
    "quoted number": (MODEL + "server: {port: '80'}\n", ["server.port"]),
    "fraction for a count": (MODEL + "replicas: {count: 1.5}\n", ["replicas.count"]),
    "yes for a name": ("model: {path: demo, served_name: yes}\n", ["model.served_name"]),
    "not a number": (MODEL + "server: {request_timeout_s: .nan}\n", ["server.request_timeout_s"]),
    "infinite": (MODEL + "server: {request_timeout_s: .inf}\n", ["server.request_timeout_s"]),
    "out of range": (
        MODEL + "server: {port: 70000, shutdown_grace_s: 15}\nreplicas: {count: 0}\n",
        ["server.port", "server.shutdown_grace_s", "replicas.count"],
    ),
    "unknown choice": (MODEL + "speculation: {method: medusa}\n", ["speculation.method"]),
    "not ready yet": (MODEL + "speculation: {method: tree}\n", ["speculation.method"]),
    "pipeline parallelism": (MODEL + "replicas: {pipeline_parallel: 2}\n", ["replicas.pipeline_parallel"]),
    "disaggregation": (MODEL + "prefill: {replicas: 2}\n", ["prefill"]),
    "adapters": ("model: {path: demo, lora_adapters: [a]}\n", ["model.lora_adapters"]),
    "images": ("model: {path: demo, image_input: true}\n", ["model.image_input"]),
    "refused arguments": (
        MODEL
        + "replicas: {sglang_args: {pp_size: 2, enable_lora: true, enable_multimodal: true, disaggregation_mode: x,"
        " speculative_accept_threshold_single: 0.5, attn_cp_size: 2, tp_size: 2, api_key: x, no_such: 1}}\n",
        [
            f"replicas.sglang_args.{name}"
            for name in (
                "pp_size",
                "enable_lora",
                "enable_multimodal",
                "disaggregation_mode",
                "speculative_accept_threshold_single",
                "attn_cp_size",
                "tp_size",
                "api_key",
                "no_such",
            )
        ],
    ),
    "a date for an argument": (
        MODEL + "replicas: {sglang_args: {log_level: 2026-01-01}}\n",
        ["replicas.sglang_args.log_level"],
    ),
    "ranks that don't divide": (
        MODEL + "replicas: {tensor_parallel: 8, nodes: 3, expert_parallel: 5, attention_data_parallel: 7}\n",
        ["replicas.nodes", "replicas.expert_parallel", "replicas.attention_data_parallel"],
    ),
    "all-to-all over some ranks": (
        MODEL
        + "replicas: {tensor_parallel: 8, expert_parallel: 4, moe_all_to_all: deepep, max_running_requests: 8}\n",
        ["replicas.expert_parallel"],
    ),
    "rows beyond the dispatch buffer": (
        MODEL
        + "replicas: {tensor_parallel: 8, expert_parallel: 8, attention_data_parallel: 8, moe_all_to_all: deepep,"
        " max_running_requests: 1032}\n",
        ["replicas.dispatch_rows_per_rank"],
    ),
    "rows unknown to the dispatch buffer": (
        MODEL + "replicas: {tensor_parallel: 8, expert_parallel: 8, moe_all_to_all: deepep}\n",
        ["replicas.max_running_requests"],
    ),
    "requests that don't share out": (
        MODEL + "replicas: {tensor_parallel: 4, attention_data_parallel: 4, max_running_requests: 6}\n",
        ["replicas.max_running_requests"],
    ),
    "cache below one request": (
        "model: {path: demo, context_tokens: 4096}\nreplicas: {kv_tokens: 1024}\n",
        ["replicas.kv_tokens"],
    ),
    "chunk that leaves a page open": (
        MODEL + "replicas: {page_tokens: 64, chunked_prefill_tokens: 100}\n",
        ["replicas.chunked_prefill_tokens"],
    ),
    "GPU features on a CPU": (
        "model: {path: demo, quantization: fp8, kv_dtype: fp8_e4m3}\n"
        "replicas: {device: cpu, moe_all_to_all: mori, attention_backend: fa3}\nspeculation: {method: dspark_native}\n",
        [
            "model.quantization",
            "model.kv_dtype",
            "replicas.moe_all_to_all",
            "replicas.attention_backend",
            "speculation.method",
        ],
    ),
    "run-time depth under attention-DP with all-to-all": (
        MODEL
        + "replicas: {tensor_parallel: 8, expert_parallel: 8, attention_data_parallel: 8, moe_all_to_all: megamoe}\n"
        "speculation: {method: dspark_native, block_tokens: 5, verification: compact}\n",
        ["speculation.verification"],
    ),
    "DSpark under attention-DP with DeepEP": (
        MODEL
        + "replicas: {tensor_parallel: 8, expert_parallel: 8, attention_data_parallel: 8, moe_all_to_all: deepep,"
        " max_running_requests: 64}\nspeculation: {method: dspark_native, block_tokens: 5}\n",
        ["replicas.moe_all_to_all"],
    ),
    "standalone without a draft, over groups": (
        MODEL + "replicas: {tensor_parallel: 2, attention_data_parallel: 2}\nspeculation: {method: standalone}\n",
        ["speculation.draft_path", "replicas.attention_data_parallel"],
    ),
    "draft without a method": (
        MODEL + "speculation: {draft_path: a/b, block_tokens: 3}\n",
        ["speculation.draft_path", "speculation.block_tokens"],
    ),
    "tables without a budget": (
        MODEL + "speculation: {method: dspark_native, step_cost_path: /a, calibration_path: /b}\n",
        ["speculation.step_cost_path", "speculation.calibration_path"],
    ),
    "no default tier": (MODEL + "tiers: {1: {name: a}, 2: {name: b}}\n", ["tiers"]),
    "two default tiers of one name": (
        MODEL + "tiers: {1: {name: a, default: true}, 2: {name: a, default: true}}\n",
        ["tiers", "tiers.2.name"],
    ),
    "tier id out of range": (MODEL + "tiers: {64: {name: a, default: true}}\n", ["tiers.64"]),
    "no tier at all": (MODEL + "tiers: {}\n", ["tiers"]),
    "backoff that shrinks": (
        MODEL + "supervision: {restart_backoff_first_s: 9, restart_backoff_max_s: 3}\n",
        ["supervision.restart_backoff_first_s"],
    ),
    "wrong keys and broken rules together": (
        MODEL + "replicas: {tensor_parallel: 4, expert_parallel: 3, count: x}\nserver: {prot: 1}\n",
        ["replicas.expert_parallel", "replicas.count", "server.prot"],
    ),
}  # fmt: skip


def problems_of(text: str, tmp_path: Path) -> list[Any]:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    return list(caught.value.problems)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_gives_exactly_its_problems(name: str, tmp_path: Path) -> None:
    text, paths = MALFORMED[name]
    problems = problems_of(text, tmp_path)
    assert sorted(problem.path for problem in problems) == sorted(paths)
    assert all(problem.rule and problem.value and problem.cure for problem in problems)
    assert all("\n" not in str(problem) for problem in problems)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_shipped_files_load(file: Path) -> None:
    assert load_settings(file).default_tier in load_settings(file).tiers


def test_there_is_a_file_for_every_kind_of_deployment() -> None:
    found = [load_settings(file) for file in FILES]
    assert any(settings.replicas.expert_parallel == 8 and settings.replicas.nodes == 1 for settings in found)
    assert any(settings.replicas.attention_data_parallel > 1 and settings.replicas.nodes == 2 for settings in found)
    assert {settings.speculation.method for settings in found} == {"none", "dspark_native", "standalone"}
    assert any(settings.model.quantization for settings in found)


def test_missing_file_and_directory_are_problems(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="readable"):
            load_settings(path)


def test_text_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"model: {path: \xff}")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_settings(file)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (MODEL + "replicas: {tensor_paralel: 8}\n", "tensor_parallel"),
        (MODEL + "sever: {port: 1}\n", "server"),
        (MODEL + "tiers: {1: {nmae: a, name: b, default: true}}\n", "name"),
        (MODEL + "replicas: {sglang_args: {log_levl: info}}\n", "log_level"),
    ],
)
def test_a_misspelt_key_is_told_which_was_meant(text: str, meant: str, tmp_path: Path) -> None:
    assert f"Did you mean {meant}?" in str(problems_of(text, tmp_path)[0])


def test_not_served_features_are_refused_with_a_sentence(tmp_path: Path) -> None:
    text = "model: {path: demo, lora: a, image_input: b}\nreplicas: {pipeline_parallel: 2, prefill: 1}\n"
    assert all("not served" in problem.cure for problem in problems_of(text, tmp_path))


def test_overrides_replace_values_before_anything_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: {path: broken}\ntiers: {1: {name: a, default: true}}\n", encoding="utf-8")
    items = ["model.path=/m", "server.port=81", "tiers.1.promise_tok_s=5", "replicas.sglang_args.log_level=info"]
    settings = load_settings(file, parse_overrides(items))
    assert (settings.model.path, settings.server.port) == ("/m", 81)
    assert settings.tiers[1].promise_tok_s == 5
    assert settings.replicas.sglang_args == {"log_level": "info"}


def test_an_override_can_set_null() -> None:
    assert parse_overrides(["ray.address=null", "model.served_name='a=b'"]) == {
        "ray.address": None,
        "model.served_name": "a=b",
    }


@pytest.mark.parametrize("items", [["port"], ["=3"], ["a=[", "b"], ["a={"]])
def test_a_malformed_override_is_a_problem(items: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(items)
    assert len(caught.value.problems) == len(items)


def test_an_override_inside_a_value_is_a_problem() -> None:
    with pytest.raises(ConfigError, match="not a section"):
        load_settings(CONFIGS / "demo.yaml", {"model.path.x": 1})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_settings_written_as_yaml_load_as_the_same(file: Path, tmp_path: Path) -> None:
    settings = load_settings(file)
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(settings.model_dump()), encoding="utf-8")
    assert load_settings(copy) == settings


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = {
    name: st.dictionaries(st.sampled_from(sorted(field.annotation.model_fields)), ANY, max_size=4) | ANY
    for name, field in Settings.model_fields.items()
    if hasattr(field.annotation, "model_fields")
}


@given(st.fixed_dictionaries({}, optional={**SECTIONS, "tiers": ANY, "other": ANY}))
@example({})
def test_no_data_gives_anything_but_settings_or_problems(data: dict[str, Any]) -> None:
    try:
        settings_from(data)
    except ConfigError as error:
        problems = error.problems
    else:
        return
    assert problems
