"""No random request ends a replica, or changes what another one is told: every method, both accept rules, two ranks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.deployment import Deployment, deployed
from support.generation import set_plan
from support.inputs.random_requests import run_random_requests
from support.oracles.oracle_draft import make_oracle_draft
from support.tiny_moe import make_tiny_moe

pytestmark = [pytest.mark.engine, pytest.mark.prove]
REQUESTS = 2000
OFF, CHAIN, TREE = 0, 2, 3


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_moe(tmp_path_factory.mktemp("random") / "target", context_gain=0.2)


@pytest.fixture(scope="module", params=["none", "match", "ratio"])
def replica(request: pytest.FixtureRequest, target: Path) -> Iterator[tuple[str, Deployment]]:
    settings: dict[str, object] = {}
    if request.param != "none":
        draft = make_oracle_draft(target.parent / f"draft-{request.param}", target, block_tokens=5)
        drawn = {"method": "tree", "draft_path": draft, "accept_rule": request.param, "tree_rows": 12}
        settings = {f"speculation.{key}": value for key, value in drawn.items()}
    with deployed(target, target.parent / f"log-{request.param}", **settings) as deployment:
        yield request.param, deployment


@pytest.mark.timeout(7200)
def test_random_requests_end_alone(replica: tuple[str, Deployment], target: Path) -> None:
    rule, deployment = replica
    rungs = (OFF,) if rule == "none" else (TREE, CHAIN)
    for rung in rungs:
        if rule != "none":
            assert set_plan(deployment.replica_url(), {"sparktier_rung": rung})
        outcome = run_random_requests(deployment, REQUESTS // len(rungs), seed=rung)
        print(f"{rule} {rung}: {dict(outcome.ends)}, {outcome.ties(target)} ties, {outcome.bystanders} beside")  # noqa: T201
        assert {"answered", "refused"} <= set(outcome.ends)
        assert not outcome.sampled, outcome.sampled
