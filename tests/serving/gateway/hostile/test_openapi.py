"""The OpenAPI document is true of the server that serves it, whatever is sent by it: schemathesis."""

import contextlib
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sparktier.serving.gateway.http import openapi
from sparktier.serving.gateway.requests.rules import SCHEMAS, fields_of
from support.gateways.background import in_background
from support.gateways.fronts import fronted, serving
from support.gateways.plain_replica import answers
from support.scripted_replica import scripted_replica

MODEL = "tiny"
SCHEMA = schemathesis.openapi.from_dict(openapi.document(MODEL))
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[str]:
    async with scripted_replica(answers) as replica, fronted(serving(0, replica)) as (url, _):
        yield url


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with in_background(running()) as found:
        yield found


def test_the_document_is_served_and_has_every_field(url: str) -> None:
    served = httpx.get(f"{url}{openapi.PATH}", timeout=60).json()
    assert served == openapi.document(MODEL)
    for path in SCHEMAS:
        schema = served["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["properties"].keys() <= fields_of(path)
        assert {"model", "max_tokens", "tools" if "chat" in path else "prompt"} <= schema["properties"].keys()


@pytest.mark.parametrize("examples", [8, pytest.param(400, marks=pytest.mark.prove)])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_what_the_document_says_holds(url: str, operation: schemathesis.schemas.APIOperation, examples: int) -> None:
    kept = settings(
        max_examples=examples, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None
    )

    @kept
    @given(case=operation.as_strategy() | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    def holds(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=url, checks=CHECKS, timeout=60)

    holds()
