"""Wrong values are refused before anything is deployed, with a sentence that names the key and what to do."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from helm_python.errors import HelmError

from sparktier.configs.chart.schema import values_schema
from sparktier.configs.errors import ConfigError
from sparktier.configs.loading.loader import settings_from
from sparktier.configs.rules.all import _ALL
from sparktier.configs.settings.settings import Settings
from support.charts.rendered import CHART, EXAMPLES, changed, render, values_of

ONE_NODE, FOUR, CPU = (
    next(values_of(file) for file in EXAMPLES if file.stem == name)
    for name in ("one-node", "four-replicas", "cpu-trial")
)
FLASH = next(values_of(file) for file in EXAMPLES if file.stem == "deepseek-v4-flash")
SPANNING = next(values_of(file) for file in EXAMPLES if file.stem == "multi-node")

SCHEMA = values_schema()

# Rules between keys of `config`: values, what breaks one, and the key that is named.
CONFIG = [
    (ONE_NODE, {"replicas.expert_parallel": 3}, "replicas.expert_parallel"),
    (ONE_NODE, {"replicas.nodes": 3}, "replicas.nodes"),
    (FLASH, {"replicas.attention_data_parallel": 3}, "replicas.attention_data_parallel"),
    (SPANNING, {"replicas.expert_parallel": 8}, "replicas.expert_parallel"),
    (SPANNING, {"replicas.max_running_requests": 1001}, "replicas.max_running_requests"),
    (ONE_NODE, {"replicas.page_tokens": 64, "replicas.chunked_prefill_tokens": 100}, "replicas.chunked_prefill_tokens"),
    (CPU, {"model.quantization": "fp8"}, "model.quantization"),
    (CPU, {"model.kv_dtype": "fp8_e4m3"}, "model.kv_dtype"),
    (CPU, {"replicas.moe_all_to_all": "deepep"}, "replicas.moe_all_to_all"),
    (CPU, {"replicas.attention_backend": "fa3"}, "replicas.attention_backend"),
    (CPU, {"speculation.method": "standalone"}, "speculation.method"),
    (ONE_NODE, {"replicas.attention_backend": "fa3"}, "replicas.attention_backend"),
    (ONE_NODE, {"speculation.verification": "compact"}, "speculation.verification"),
    (ONE_NODE, {"speculation.draft_path": None}, "speculation.draft_path"),
    (ONE_NODE, {"speculation.short_tokens": 8}, "speculation.short_tokens"),
    (CPU, {"speculation.safe_rung": 3}, "speculation.safe_rung"),
    (ONE_NODE, {"speculation.live_shares": True}, "speculation.live_shares"),
    (
        ONE_NODE,
        {"replicas.attention_data_parallel": 2, "speculation.prompt_lookup": True},
        "replicas.attention_data_parallel",
    ),
    (ONE_NODE, {"speculation.prompt_lookup": True, "speculation.accept_rule": "ratio"}, "speculation.accept_rule"),
    (FLASH, {"speculation.method": "standalone"}, "replicas.attention_data_parallel"),
    (FLASH, {"replicas.moe_all_to_all": "deepep", "replicas.expert_parallel": 4}, "replicas.moe_all_to_all"),
    (FLASH, {"replicas.moe_all_to_all": "mori", "replicas.expert_parallel": 4}, "speculation.verification"),
    (FLASH, {"speculation.verification": "static", "speculation.step_cost_path": "/x"}, "speculation.step_cost_path"),
    (FLASH, {"speculation.step_cost_path": "/x", "speculation.step_times_path": "/y"}, "speculation.step_cost_path"),
    (FLASH, {"speculation.step_times_path": "/y"}, "speculation.step_times_path"),
    (FOUR, {"tiers.0.default": False}, "tiers"),
    (FOUR, {"tiers.1.default": True}, "tiers"),
    (FOUR, {"tiers.2.name": "standard"}, "tiers.2.name"),
    (FOUR, {"tiers.1.downgrade_to": None}, "tiers.1.downgrade_to"),
    (FOUR, {"tiers.1.downgrade_to": "gold"}, "tiers.1.downgrade_to"),
    (FOUR, {"tiers.0.downgrade_to": "batch"}, "tiers.0.downgrade_to"),
    (FOUR, {"tiers.1.promise_tok_s": 20}, "tiers.1.downgrade_to"),
    (FOUR, {"tiers.0.yields": True}, "tiers.0.yields"),
    (FOUR, {"tiers.0.max_stall_ms": 100}, "tiers.0.max_stall_ms"),
    (FOUR, {"gateway.flex_tier": "gold"}, "gateway.flex_tier"),
    (FOUR, {"controller.tick_ms": 5000}, "controller.ttl_ms"),
    (FOUR, {"controller.stale_ms": 1000}, "controller.stale_ms"),
    (FOUR, {"supervision.restart_backoff_first_s": 90}, "supervision.restart_backoff_first_s"),
    (FOUR, {"model.served_name": "a:b"}, "model.served_name"),
    (FOUR, {"training.records_at_once": 8}, "training.records_at_once"),
    (FOUR, {"training.target_layer_ids": [3, 2]}, "training.target_layer_ids"),
    (FLASH, {"training.target_layer_ids": [3]}, "training.target_layer_ids"),
    (SPANNING, {"training.target_layer_ids": [3]}, "replicas.attention_data_parallel"),
    (FOUR, {"server.grpc_tls_cert_file": "/tls.crt"}, "server.grpc_tls_key_file"),
    (FOUR, {"server.grpc_tls_key_file": "/tls.key"}, "server.grpc_tls_cert_file"),
    (FOUR, {"server.tls_cert_file": "/tls.crt"}, "server.tls_key_file"),
    (FOUR, {"server.replica_key_file": "/tls.key"}, "server.replica_cert_file"),
    (CPU, {"server.tls_client_ca_file": "/ca.crt"}, "server.tls_client_ca_file"),
    (FOUR, {"tokens.issuer": "https://i"}, "tokens.keys_url"),
    (FOUR, {"tokens.issuer": "https://i"}, "tokens.tiers"),
    (FOUR, {"tokens": {"issuer": "https://i", "keys_url": "http://i.example/keys"}}, "tokens.keys_url"),
    (FOUR, {"tokens.tiers": {"llm": "none-such"}}, "tokens.tiers.llm"),
]  # fmt: skip
# The program alone tells these when it starts: long arithmetic, and the names of SGLang's arguments.
NOT_TOLD = {"_longest_request_fits", "_passthrough_is_free", "_rows_fit_dispatch"}
# The chart sets the keys of these itself.
NOT_POSSIBLE = {"_one_lease", "_without_keys_this_machine_alone"}
# Rules between the chart's own values.
OWN = [
    (FOUR, {"config.replicas.device": "auto"}, "config.replicas.device"),
    (FOUR, {"config.ray.address": "ray:6379"}, "config.ray.address"),
    (FOUR, {"config.server.port": 80}, "config.server.port"),
    (FOUR, {"config.gateway.pepper_file": "/x"}, "config.gateway.pepper_file"),
    (FOUR, {"config.controller.lease_path": "/x"}, "config.controller.lease_path"),
    (FOUR, {"config.controller.port": 1}, "config.controller.port"),
    (FOUR, {"config.server.grpc_tls_cert_file": "/x"}, "config.server.grpc_tls_cert_file"),
    (FOUR, {"config.usage.path": "/x"}, "config.usage.path"),
    (FOUR, {"secrets.pepper.name": ""}, "secrets.pepper.name"),
    (FOUR, {"files": {"config.yaml": "x"}}, "files.config.yaml"),
    (CPU, {"models.download.enabled": True}, "models.download.enabled"),
    (CPU, {"models.offline": True}, "models.offline"),
    (FOUR, {"jitCache": {"size": "1Gi", "accessModes": ["ReadWriteOnce"]}}, "jitCache.accessModes"),
    (FOUR, {"gateway.usageClaim.size": "1Gi"}, "gateway.replicas"),
    (FOUR, {"gateway.ingress.enabled": True}, "gateway.ingress.host"),
    (FOUR, {"gateway.route.gateway": ""}, "gateway.route.gateway"),
    (FOUR, {"networkPolicy.monitoring": []}, "networkPolicy.monitoring"),
    (CPU, {"jobs.profile.enabled": True}, "jobs.profile.enabled"),
    (SPANNING, {"jobs.profile.enabled": True}, "jobs.profile.enabled"),
    (CPU, {"jobs.calibrate.enabled": True}, "jobs.calibrate.prompts"),
    (FOUR, {"gateway.autoscaling": {"enabled": True, "maxReplicas": 1}}, "gateway.autoscaling.maxReplicas"),
    (
        FOUR,
        {"gateway.autoscaling.enabled": True, "gateway.replicas": 1, "gateway.usageClaim.size": "1Gi"},
        "gateway.autoscaling.enabled",
    ),
]


def named(case: tuple[Any, Any, str]) -> str:
    return " ".join(case[1])


def broken(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for dotted, value in changes.items():
        values = changed(values, dotted, value)
    return values


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(HelmError) as refused:
        render(values)
    return str(refused.value)


@pytest.mark.parametrize("case", CONFIG, ids=named)
def test_a_rule_between_keys_of_the_configuration_is_the_programs_own(case: tuple[Any, Any, str]) -> None:
    values, changes, key = case
    wrong = broken(values, {f"config.{dotted}": value for dotted, value in changes.items()})
    config = {**wrong["config"], "gateway": {**wrong["config"].get("gateway", {}), "keys_file": "/k"}}
    with pytest.raises(ConfigError) as refused:
        settings_from(config)
    assert key in {problem.path for problem in refused.value.problems}
    assert re.search(rf"(?m)^config\.{re.escape(key)}: .+ \(found .+\)\. \S.+\.$", refusal(wrong))


def test_every_rule_of_the_program_is_told_or_listed() -> None:
    told: set[str] = set()
    for values, changes, _ in CONFIG:
        config = broken(values, {f"config.{dotted}": value for dotted, value in changes.items()})["config"]
        settings = Settings.model_validate(config)
        told |= {rule.check.__name__ for rule in _ALL if list(rule.check(settings))}
    assert told - NOT_TOLD - NOT_POSSIBLE == {rule.check.__name__ for rule in _ALL} - NOT_TOLD - NOT_POSSIBLE


@pytest.mark.parametrize("case", OWN, ids=named)
def test_a_rule_between_the_charts_values_is_told_with_its_cure(case: tuple[Any, Any, str]) -> None:
    values, changes, key = case
    assert re.search(rf"(?m)^{re.escape(key)}: .+ \(found .*\)\. \S.+\.$", refusal(broken(values, changes)))


def test_all_broken_rules_are_told_at_once() -> None:
    said = refusal(broken(FOUR, {"secrets.pepper.name": "", "config.tiers.0.default": False}))
    assert "secrets.pepper.name: " in said
    assert "config.tiers: " in said


def test_a_key_that_is_missing_is_named() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    required = [".".join(path) for path in paths(defaults) if path[0] != "config"]
    assert len(required) > 60
    for dotted in required:
        assert dotted.split(".")[-1] in refusal(changed(FOUR, dotted, None)), dotted
    assert "model" in refusal(changed(CPU, "config", {}))
    assert "path" in refusal(changed(CPU, "config", {"model": {}}))


def paths(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


def test_a_bound_that_is_crossed_is_named() -> None:
    crossed = list(beyond_bounds(SCHEMA, ()))
    assert len(crossed) > 60
    for dotted, value in crossed:
        assert dotted.split(".")[-1] in refusal(changed(FOUR, dotted, value)), (dotted, value)


def beyond_bounds(schema: dict[str, Any], at: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield each key of the schema that has a bound, with a value beyond it."""
    for key, found in schema.get("properties", {}).items():
        for part in (found, *found.get("anyOf", ())):
            target = SCHEMA["$defs"][part["$ref"].split("/")[-1]] if "$ref" in part else part
            path = (*at, key)
            for name, step in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1), ("exclusiveMaximum", 0)):
                if name in target:
                    yield ".".join(path), target[name] + step
            if "enum" in target:
                yield ".".join(path), "none of these"
            yield from beyond_bounds(target, path)
        if (*at, key) == ("config", "tiers"):
            yield from beyond_bounds(SCHEMA["$defs"]["TierSettings"], (*at, key, "0"))


def test_a_key_that_there_is_not_is_named() -> None:
    for place in ("config.modle", "config.tiers.0.promise", "engine.gpus", "gateway.ingress.hosts"):
        assert place.split(".")[-1] in refusal(changed(FOUR, place, {}))
    tiers = json.loads(json.dumps({**FOUR["config"]["tiers"], "64": {"name": "late"}}))
    assert "64" in refusal(changed(FOUR, "config.tiers", tiers))
