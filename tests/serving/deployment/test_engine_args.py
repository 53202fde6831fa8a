"""engine_args: every name exists in the installed SGLang, and each setting reaches the argument it stands for."""

import ast
import importlib.util
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from sparktier.configs.errors import ConfigError
from sparktier.configs.loading.loader import load_settings, settings_from
from sparktier.configs.rules.sglang_passthrough import known_arguments
from sparktier.serving.deployment.engine_args import engine_environment, engine_kwargs
from sparktier.serving.deployment.resolved import Device
from support.machines import resolved_on

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
# Those of simulations have a form of their own.
FILES = sorted(file for file in CONFIGS.rglob("*.yaml") if not file.name.startswith("sim-"))
DSPARK = {"method": "dspark_native", "block_tokens": 5, "verification": "compact", "step_cost_path": "/t/sps.json"}


def kwargs_of(data: dict[str, Any], device: Device = "cuda") -> dict[str, Any]:
    return engine_kwargs(resolved_on(device, settings_from(data), "/weights"), replica=3)


def test_the_recorded_argument_names_are_those_of_the_installed_sglang() -> None:
    from sglang.srt.server_args import ServerArgs, record_fields

    public = sorted(field.name for field in record_fields(ServerArgs) if not field.name.startswith("_"))
    assert list(known_arguments()) == public


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_sglang_accepts_the_arguments_of_every_shipped_file(file: Path) -> None:
    from sglang.srt.server_args import ServerArgs

    kwargs = engine_kwargs(resolved_on("cuda", load_settings(file), "/weights"), replica=0)
    arguments = ServerArgs(**kwargs)
    assert {name: getattr(arguments, name) for name in kwargs} == kwargs


def test_values_sglang_offers_contain_those_we_offer() -> None:
    from sglang.srt.arg_groups import choices
    from sglang.srt.arg_groups.fields.exec_ import ExecMoe

    from sparktier.configs.settings.model import Quantization
    from sparktier.configs.settings.replicas import ReplicaSettings

    assert set(Quantization.__args__) <= set(choices.QUANTIZATION_CHOICES)
    ours = set(ReplicaSettings.model_fields["moe_all_to_all"].annotation.__args__)
    theirs = set(get_type_hints(ExecMoe, include_extras=True)["moe_a2a_backend"].__metadata__[0].choices)
    assert ours <= theirs


def test_environment_variables_are_read_by_the_installed_sglang() -> None:
    root = Path(importlib.util.find_spec("sglang").origin).parent / "srt"
    read = "".join((root / name).read_text() for name in ("environ.py", "layers/moe/token_dispatcher/mooncake.py"))
    for backend in ("deepep", "mooncake", "nixl"):
        data = {
            "model": {"path": "a/b"},
            "replicas": {
                "tensor_parallel": 8,
                "expert_parallel": 8,
                "moe_all_to_all": backend,
                "max_running_requests": 8,
                "dispatch_rows_per_rank": 256,
            },
            "speculation": DSPARK,
        }
        environment = engine_environment(resolved_on("cuda", settings_from(data)))
        assert sorted(environment.values()) == ["256", "compact"]
        assert all(name in read for name in environment)


def test_defaults_of_rules_match_the_installed_sglang() -> None:
    root = Path(importlib.util.find_spec("sglang").origin).parent / "srt"
    tree = ast.parse((root / "environ.py").read_text())
    values = {
        node.targets[0].id: node.value.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"
    }
    assert list(values.values()) == [settings_from({"model": {"path": "a/b"}}).replicas.dispatch_rows_per_rank]


def test_cpu_runs_without_overlap_graphs_or_an_unbounded_cache() -> None:
    kwargs = kwargs_of({"model": {"path": "/m", "context_tokens": 32768}}, device="cpu")
    assert kwargs["device"] == "cpu"
    assert kwargs["disable_overlap_schedule"]
    assert kwargs["disable_cuda_graph"]
    assert kwargs["max_total_tokens"] == 32768 + 3
    assert "attention_backend" not in kwargs


def test_a_passthrough_argument_cannot_undo_what_the_cpu_needs() -> None:
    replicas = {"sglang_args": {"disable_overlap_schedule": False, "log_level": "info"}}
    kwargs = kwargs_of({"model": {"path": "/m"}, "replicas": replicas}, device="cpu")
    assert kwargs["disable_overlap_schedule"] is True
    assert kwargs["log_level"] == "info"


@pytest.mark.parametrize("speculation", [{"method": "none"}, DSPARK], ids=["plain", "dspark"])
def test_no_request_waits_beside_a_free_slot_unless_asked_for(speculation: dict[str, Any]) -> None:
    from sglang.srt.managers.min_free_slots_delayer import resolve_min_free_slots

    def threshold(sglang_args: dict[str, Any]) -> int | None:
        data = {"model": {"path": "/m"}, "replicas": {"sglang_args": sglang_args}, "speculation": speculation}
        return resolve_min_free_slots(kwargs_of(data)["min_free_slots_delay"], 16, is_dflash_family=True)

    assert resolve_min_free_slots(None, 16, is_dflash_family=True) == 3
    assert threshold({}) is None
    assert threshold({"min_free_slots_delay": 4}) == 4


def test_auto_that_comes_to_cpu_is_checked_as_cpu() -> None:
    data = {"model": {"path": "/m", "quantization": "fp8"}, "speculation": {"method": "dspark_native"}}
    with pytest.raises(ConfigError) as caught:
        kwargs_of(data, device="cpu")
    assert {problem.path for problem in caught.value.problems} == {"model.quantization", "speculation.method"}


def test_settings_reach_their_arguments() -> None:
    data = {
        "model": {"path": "org/big", "kv_dtype": "fp8_e4m3", "context_tokens": 8192},
        "replicas": {
            "nodes": 2,
            "tensor_parallel": 16,
            "expert_parallel": 16,
            "attention_data_parallel": 8,
            "moe_all_to_all": "deepep",
            "max_running_requests": 128,
            "memory_frac": 0.8,
        },
    }
    kwargs = kwargs_of(data)
    expected = {
        "model_path": "/weights",
        "served_model_name": "big",
        "kv_cache_dtype": "fp8_e4m3",
        "context_length": 8192,
        "nnodes": 2,
        "tp_size": 16,
        "ep_size": 16,
        "attn_dp_size": 8,
        "moe_a2a_backend": "deepep",
        "max_running_requests": 128,
        "mem_fraction_static": 0.8,
        "random_seed": 3,
        "use_ray": True,
    }
    assert {name: kwargs[name] for name in expected} == expected
    assert "enable_dp_attention" not in kwargs
    assert "disable_overlap_schedule" not in kwargs


def test_native_dspark_asks_for_the_vocabulary_head_only_under_attention_groups() -> None:
    data = {"model": {"path": "org/big"}, "replicas": {"tensor_parallel": 4}, "speculation": DSPARK}
    alone = kwargs_of(data)
    assert (alone["speculative_algorithm"], alone["speculative_dspark_block_size"]) == ("DSPARK", 5)
    assert alone["speculative_dspark_sps_table_path"] == "/t/sps.json"
    assert "enable_dp_lm_head" not in alone
    data["replicas"]["attention_data_parallel"] = 4
    assert kwargs_of(data)["enable_dp_lm_head"] is True


@pytest.mark.parametrize("block", [None, 4])
def test_standalone_gives_sglang_all_three_chain_lengths_or_none(block: int | None) -> None:
    speculation = {"method": "standalone", "draft_path": "org/small", "block_tokens": block}
    kwargs = kwargs_of({"model": {"path": "org/big"}, "speculation": speculation})
    lengths = [kwargs.get(f"speculative_{name}") for name in ("num_steps", "eagle_topk", "num_draft_tokens")]
    assert lengths == ([None] * 3 if block is None else [4, 1, 5])


def test_a_tier_that_yields_gives_its_seats_to_promised_requests() -> None:
    strict = {"name": "strict", "default": True, "promise_tok_s": 9.0, "cap_users": 3}
    tiers: dict[int, Any] = {0: strict, 1: {"name": "batch", "yields": True, "cap_users": 2}}
    found = kwargs_of({"model": {"path": "/m"}, "tiers": tiers})
    assert (found["enable_priority_scheduling"], found["priority_scheduling_preemption_threshold"]) == (True, 0)
    assert found["pp_max_micro_batch_size"] == 5
    tiers[1] = {"name": "batch", "yields": True}
    assert "pp_max_micro_batch_size" not in kwargs_of({"model": {"path": "/m"}, "tiers": tiers})
    assert "enable_priority_scheduling" not in kwargs_of({"model": {"path": "/m"}, "tiers": {0: strict}})


def test_confidence_temperatures_beside_a_draft_are_taken(tmp_path: Path) -> None:
    section = {"method": "dspark_native", "verification": "compact", "draft_path": str(tmp_path)}
    key = "speculative_dspark_confidence_sts_path"

    def taken(**more: str) -> object:
        data = {"model": {"path": "a/b"}, "speculation": section | more}
        return engine_kwargs(resolved_on("cuda", settings_from(data)), replica=0).get(key)

    assert taken() is None
    (tmp_path / "sts.json").write_text("{}")
    assert taken() == str(tmp_path / "sts.json")
    assert taken(calibration_path="/other/sts.json") == "/other/sts.json"
    assert taken(verification="static") is None
