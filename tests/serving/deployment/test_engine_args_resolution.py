"""engine_args against SGLang's own resolution: it takes every shipped deployment, and refuses what our rules refuse."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparktier.configs.errors import ConfigError
from sparktier.configs.loading.loader import load_settings, settings_from
from sparktier.serving.deployment.engine_args import engine_environment, engine_kwargs
from sparktier.serving.deployment.model_sizes import read_config
from support.machines import resolved_on
from support.resolve_arguments import resolve

DEPLOYMENTS = sorted((Path(__file__).resolve().parents[3] / "configs" / "deployments").glob("*.yaml"))
# SGLang derives these from ours, as the settings say or as its platform does.
DERIVED = {"chunked_prefill_size", "kv_cache_dtype", "dtype", "speculative_draft_model_revision", "random_seed"}
LAYOUT = {"tensor_parallel": 8, "expert_parallel": 8, "attention_data_parallel": 8}
DSPARK = {"method": "dspark_native", "block_tokens": 5}
FLASH = "deepseek-ai/DeepSeek-V4-Flash-DSpark"
QWEN = "Qwen/Qwen3-235B-A22B"

# What our rules refuse: the settings, and the SGLang arguments and environment that they would have become.
REFUSED = {
    "DSpark under attention-DP with DeepEP": (
        {"replicas": {**LAYOUT, "moe_all_to_all": "deepep", "max_running_requests": 64}, "speculation": DSPARK},
        {"attn_dp_size": 8, "moe_a2a_backend": "deepep", "speculative_algorithm": "DSPARK", "enable_dp_lm_head": True},
        {},
    ),
    "trimmed verification under attention-DP with all-to-all": (
        {
            "replicas": {**LAYOUT, "moe_all_to_all": "megamoe"},
            "speculation": {**DSPARK, "verification": "compact"},
        },
        {"attn_dp_size": 8, "moe_a2a_backend": "megamoe", "speculative_algorithm": "DSPARK", "enable_dp_lm_head": True},
        {"SGLANG_RAGGED_VERIFY_MODE": "compact"},
    ),
    "standalone draft under attention-DP": (
        {"replicas": LAYOUT, "speculation": {"method": "standalone", "draft_path": QWEN}},
        {"attn_dp_size": 8, "speculative_algorithm": "STANDALONE"},
        {},
    ),
    "attention groups that don't divide the ranks": (
        {"replicas": {"tensor_parallel": 8, "attention_data_parallel": 3}},
        {"attn_dp_size": 3},
        {},
    ),
    "a name with a colon": (
        {"model": {"path": QWEN, "served_name": "qwen:latest"}},
        {"served_model_name": "qwen:latest"},
        {},
    ),
    "a prefill chunk of broken pages": (
        {"replicas": {"page_tokens": 64, "chunked_prefill_tokens": 1000}},
        {"page_size": 64, "chunked_prefill_size": 1000},
        {},
    ),
}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function from a hub id to a directory with that model's config."""

    def write(path: str) -> str:
        folder = tmp_path_factory.getbasetemp() / path.replace("/", "--")
        folder.mkdir(exist_ok=True)
        config = {name: value for name, value in read_config(path).items() if name != "source"}
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return write


@pytest.fixture(scope="module")
def answers(local: Any) -> dict[str, dict[str, Any]]:
    """SGLang's answer to every case, by name: one process for all, since importing SGLang is most of the time."""
    cases = {}
    for file in DEPLOYMENTS:
        settings = load_settings(file)
        resolved = resolved_on("cuda", settings, local(settings.model.path))
        kwargs = engine_kwargs(resolved, replica=0)
        if settings.speculation.draft_path:
            kwargs["speculative_draft_model_path"] = local(settings.speculation.draft_path)
        cases[file.name] = {"kwargs": kwargs, "environment": engine_environment(resolved)}
    for name, (sections, arguments, environment) in REFUSED.items():
        is_dspark = sections.get("speculation", {}).get("method") == "dspark_native"
        base = {"model_path": local(FLASH if is_dspark else QWEN), "device": "cuda", "tp_size": 8, "use_ray": True}
        if "STANDALONE" in arguments.values():
            arguments = {**arguments, "speculative_draft_model_path": local("Qwen/Qwen3-0.6B")}
        cases[name] = {"kwargs": {**base, **arguments}, "environment": environment}
    return dict(zip(cases, resolve(list(cases.values())), strict=True))


@pytest.mark.parametrize("file", DEPLOYMENTS, ids=lambda file: file.name)
def test_sglang_accepts_a_shipped_deployment_and_keeps_what_we_set(
    file: Path, answers: dict[str, dict[str, Any]]
) -> None:
    answer = answers[file.name]
    assert answer["error"] is None
    kwargs = engine_kwargs(resolved_on("cuda", load_settings(file)), replica=0)
    kept = {name for name in kwargs if not name.endswith("model_path")} - DERIVED
    assert {name: answer["resolved"][name] for name in kept} == {name: kwargs[name] for name in kept}


@pytest.mark.parametrize("name", REFUSED)
def test_sglang_refuses_what_our_rules_refuse(name: str, answers: dict[str, dict[str, Any]]) -> None:
    sections = REFUSED[name][0]
    with pytest.raises(ConfigError):
        settings_from({"model": {"path": QWEN}, **sections})
    assert answers[name]["error"] is not None
