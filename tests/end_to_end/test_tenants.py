"""Tenants of a running deployment: the rank serves the tier that was asked for, no prefix is shared, no key is seen."""

import json
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sparktier.serving.clients.replica_keys import bearer
from sparktier.serving.gateway.proto.sparktier.v1 import inference_pb2 as pb
from support import replica_http
from support.deployment import CLIENT_KEY, MODEL, SHOWN, Deployment
from support.gateways.grpc_calls import method
from support.generation import random_prompts
from support.inputs.tenants import OTHER_KEY, PEPPER

pytestmark = pytest.mark.engine
STANDARD, GOLD, LONE = 0, 5, 7


def rounds_by_tier(deployment: Deployment) -> dict[str, float]:
    """Return how many rounds of speculation the rank has run for each tier so far."""
    text = replica_http.get(f"{deployment.replica_url()}/metrics", timeout=60.0).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.labels["tier"]: sample.value for sample in samples if sample.name == "sparktier_rounds_total"}


@pytest.mark.parametrize(
    ("source", "tier", "name"),
    [
        ({}, STANDARD, "standard"),
        ({"extra_headers": {"x-sparktier-tier": "gold"}}, GOLD, "gold"),
        ({"service_tier": "priority"}, LONE, "lone"),
    ],
    ids=["nothing", "header", "service_tier"],
)
def test_the_tier_of_a_request_is_that_of_the_rank_that_served_it(
    drafting: Deployment, source: dict[str, Any], tier: int, name: str
) -> None:
    before = rounds_by_tier(drafting)
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "ba be"}], "max_tokens": 24, "temperature": 0}
    # A client's own choice of a tier goes no further.
    extra = {"ignore_eos": True, "custom_params": {"sparktier_tier": STANDARD if tier == GOLD else GOLD}}
    answer = drafting.client().chat.completions.with_raw_response.create(**asked, **source, extra_body=extra)
    after = rounds_by_tier(drafting)
    assert {of for of in after if after[of] > before.get(of, 0.0)} == {str(tier)}
    assert answer.headers["x-sparktier-tier"] == name
    assert json.loads(answer.text)["usage"]["sparktier"]["tier"] == name


@pytest.mark.parametrize(
    ("field", "metadata", "tier", "name"),
    [
        (None, (), STANDARD, "standard"),
        ("gold", (), GOLD, "gold"),
        (None, (("x-sparktier-tier", "lone"),), LONE, "lone"),
        ("gold", (("x-sparktier-tier", "lone"),), GOLD, "gold"),
    ],
    ids=["nothing", "field", "metadata", "field before metadata"],
)
def test_the_tier_of_a_call_is_that_of_the_rank_that_served_it(
    drafting: Deployment, field: str | None, metadata: tuple[tuple[str, str], ...], tier: int, name: str
) -> None:
    before = rounds_by_tier(drafting)
    asked = pb.CompleteRequest(
        prompts=[pb.Prompt(text="ba be")], sampling=pb.Sampling(max_tokens=24, ignore_eos=True), tier=field
    )
    shown = (("authorization", f"Bearer {CLIENT_KEY}"), *metadata)
    with grpc.insecure_channel(drafting.grpc_address) as channel:
        answer, call = method(channel, "Complete").with_call(asked, metadata=shown, timeout=120)
    after = rounds_by_tier(drafting)
    assert {of for of in after if after[of] > before.get(of, 0.0)} == {str(tier)}
    assert dict(call.initial_metadata())["x-sparktier-tier"] == answer.usage.tier == name


def test_keys_of_clients_do_nothing_on_the_internal_listener_and_its_routes_are_not_public(
    drafting: Deployment,
) -> None:
    for headers in ({}, SHOWN, bearer("sk-wrong")):
        inside = httpx.get(f"{drafting.internal_url}/metrics", headers=headers, timeout=60.0)
        assert "sparktier_gateway" in inside.text
        for path in ("/v1/models", "/v1/completions", "/v1/chat/completions", "/openapi.json"):
            assert httpx.get(drafting.internal_url + path, headers=headers, timeout=60.0).status_code == 404
            assert httpx.post(drafting.internal_url + path, json={}, headers=headers, timeout=60.0).status_code == 404
        for path in ("/metrics", "/console", "/sparktier/signals", "/sparktier/ended", "/sparktier/plan"):
            assert httpx.get(drafting.url + path, headers=headers, timeout=60.0).status_code == 404


def test_a_tenant_sees_no_cached_token_of_another(drafting: Deployment) -> None:
    [prompt] = random_prompts(1, seed=11)
    prompt *= 60 // len(prompt) + 1
    cached = []
    for key in (CLIENT_KEY, CLIENT_KEY, OTHER_KEY, OTHER_KEY):
        asked = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "return_cached_tokens_details": True}
        answer = httpx.post(f"{drafting.url}/v1/completions", json=asked, headers=bearer(key), timeout=60.0)
        assert answer.status_code == 200, answer.text
        # SGLang says nothing of a request without cached tokens.
        told = answer.json().get("sglext")
        cached.append(told["cached_tokens_details"]["device"] if told else 0)
    assert (cached[0], cached[2]) == (0, 0)
    assert min(cached[1], cached[3]) > len(prompt) // 2


def test_keys_of_tenants_and_of_replicas_open_nothing_of_each_other(drafting: Deployment) -> None:
    assert httpx.get(f"{drafting.url}/v1/models", timeout=60.0).status_code == 401
    for path in ("/sparktier/signals", "/v1/models", "/metrics"):
        shown = bearer(OTHER_KEY)
        assert httpx.get(drafting.replica_url() + path, headers=shown, timeout=60.0).status_code == 401
    for key in (drafting.keys.requests, drafting.keys.admin):
        assert httpx.get(f"{drafting.url}/v1/models", headers=bearer(key), timeout=60.0).status_code == 401


def test_no_key_of_a_tenant_is_in_a_log(drafting: Deployment) -> None:
    files = [file for file in drafting.deployment_dir.rglob("*") if file.is_file()]
    said = [drafting.output, *(file.read_text(errors="replace") for file in files)]
    assert len(said) > 3
    assert not [text for text in said if OTHER_KEY in text or PEPPER in text]
