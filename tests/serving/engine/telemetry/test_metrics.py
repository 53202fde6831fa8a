"""Exported metrics: docs/metrics.md lists each with kind and labels, and values are those of the ranks."""

import re
from dataclasses import replace
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from sparktier.configs.contracts.signals import CanaryReport
from sparktier.configs.plan_keys import EnginePlan, Rung, TierTerms
from sparktier.serving.engine.telemetry.metrics import exposition
from support.rank_states import PLAN, rank_state, stats_of

DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "metrics.md"
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| .{20,} \|$", flags=re.MULTILINE)
# Of other processes.
_ELSEWHERE = ("sparktier_gateway_", "sparktier_controller_")


def exported() -> list[Metric]:
    watching = CanaryReport(state="alarmed", scored_tokens=40, alarms=1, far_tokens=2, acceptance="low")
    states = [
        rank_state(latched="wrong tokens", canary=watching),
        rank_state(tp_rank=1, is_group_leader=False, plan=replace(PLAN, rung=Rung.TREE)),
    ]
    return list(text_string_to_metric_families(exposition(states).decode()))


def value(name: str, **labels: str) -> float:
    found = [s.value for family in exported() for s in family.samples if s.name == name and s.labels == labels]
    assert len(found) == 1, f"{name} {labels}: {found}"
    return found[0]


def test_the_document_lists_what_is_exported() -> None:
    listed = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in _ROW.findall(DOCUMENT.read_text())
        if not name.startswith(_ELSEWHERE)
    }
    found = {sample.name: (family.type, set(sample.labels)) for family in exported() for sample in family.samples}
    assert listed == found


def test_names_end_in_a_unit_or_say_what_is_counted() -> None:
    units = "ms|frac|tokens|tok_s|tokens_p50|requests|rounds|verified|steps|version|rung|rows|latched|alarmed|extreme"
    for family in exported():
        assert re.fullmatch(rf"sparktier_(\w+_)?({units})", family.name), family.name


def test_values_are_those_of_the_ranks() -> None:
    assert value("sparktier_rung", tp_rank="0") == 2
    assert value("sparktier_rung", tp_rank="1") == 3
    assert value("sparktier_running_requests", dp_rank="0", tier="0") == 3
    assert value("sparktier_queued_requests", dp_rank="0", tier="5") == 2
    assert value("sparktier_unknown_tier_requests_total", dp_rank="0") == 1
    assert value("sparktier_step_ms", dp_rank="0", rung="2") == 10.0
    assert value("sparktier_user_tok_s", dp_rank="0", tier="0", quantile="0.5") == 20.0
    assert value("sparktier_rounds_total", dp_rank="0", tier="0") == 2
    assert value("sparktier_rows_verified_total", dp_rank="0", tier="0") == 6
    assert value("sparktier_round_tokens_total", dp_rank="0", tier="0") == 5
    assert value("sparktier_accepted_length_tokens", dp_rank="0", tier="0") == 2.5
    assert value("sparktier_acceptance_frac", dp_rank="0", tier="0", position="1") == 0.5
    assert value("sparktier_decode_steps_total", dp_rank="0") == 3
    assert (value("sparktier_latched", tp_rank="0"), value("sparktier_latched", tp_rank="1")) == (1, 0)
    assert value("sparktier_canary_scored_tokens_total", dp_rank="0") == 40
    assert value("sparktier_canary_far_tokens_total", dp_rank="0") == 2
    assert value("sparktier_canary_alarmed", dp_rank="0") == 1
    assert value("sparktier_canary_acceptance_extreme", dp_rank="0") == -1
    assert value("sparktier_decode_ms_total", dp_rank="0", part="verify") == 15.0
    assert value("sparktier_decode_ms_total", dp_rank="0", part="overhead") == 30.0 - 3 * 8.0


def test_a_tier_without_a_request_counts_none() -> None:
    tiers = {0: TierTerms(), 3: TierTerms(promise_tok_s=20.0)}
    page = exposition([rank_state(plan=EnginePlan(tiers=tiers), running={0: 2}, queued={})]).decode()
    assert 'sparktier_running_requests{dp_rank="0",tier="0"} 2.0' in page
    assert 'sparktier_running_requests{dp_rank="0",tier="3"} 0.0' in page
    assert 'sparktier_queued_requests{dp_rank="0",tier="3"} 0.0' in page


def test_steps_of_an_engine_without_a_ladder_are_not_taken_apart() -> None:
    page = exposition([rank_state(spec_stats=stats_of())]).decode()
    assert 'sparktier_decode_ms_total{dp_rank="0",part="plain"} 30.0' in page
    assert page.count("sparktier_decode_ms_total{") == 1
