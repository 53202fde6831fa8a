"""From settings and a trace to a cluster with its requests and texts, and from its run to report rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sparktier.cluster.policy.policy_types import CHAIN, OFF, PolicyConfig, TierRule
from sparktier.cluster.simulator.answers import Answer
from sparktier.cluster.simulator.fleet.fleet import Fleet
from sparktier.cluster.simulator.fleet.fleet_policies import fleet_policy
from sparktier.cluster.simulator.fleet.fleet_types import (
    Failure,
    FleetRun,
    FleetSpec,
    FleetTexts,
    Offered,
    ReplicaSpec,
    Trouble,
)
from sparktier.cluster.simulator.fleet.fleet_types import Result as SimResult
from sparktier.cluster.simulator.fleet.pools import pooled_plans
from sparktier.cluster.simulator.published_text import PUBLISHED, REPORTED, PublishedTexts, published_figures
from sparktier.cluster.simulator.recorded_text import read_recorded
from sparktier.cluster.step_time import StepTimeModel
from sparktier.cluster.traffic.arrivals import Share, arrivals
from sparktier.cluster.traffic.attainment import Promise, Result, kept, tier_row
from sparktier.cluster.traffic.requests import Requests, scaled, superposed, window
from sparktier.configs.step_times import read_table, reference_table
from sparktier.serving.bench.simulate.settings import ProfileSettings, SimulateSettings

BLOCK_MS = 10_000.0
REFUSED_BY_ENGINE = "a run-time ladder over DeepSeek-V4's compressed cache"
_TENANT = "all"
_PUBLISHED = {"published": PUBLISHED, "reported": REPORTED}


@dataclass(frozen=True)
class Cell:
    """One run: a policy at a load, in requests a second for each replica, with a seed."""

    load: float
    policy: str
    seed: int

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.load:g} requests/s a replica, {self.policy}, seed {self.seed}"


def spec_of(settings: SimulateSettings) -> FleetSpec:
    """Return the cluster. Raises ArtifactError where its table of step times is not usable."""
    profile, trouble, steering = settings.profile, settings.trouble, settings.controller
    times = _times(profile.step_times)
    replica = ReplicaSpec(
        times=times,
        true_times=replace(times, drift_frac=profile.table_off_frac),
        max_running=profile.max_running,
        kv_tokens=profile.kv_tokens,
        chunk_tokens=profile.chunk_tokens,
        nodes=profile.drafted_tokens,
        prefills=profile.prefills,
        live_shares=profile.live_shares,
        starts_ms=profile.starts_ms,
    )
    config = PolicyConfig(
        tiers={tier: TierRule.of(each) for tier, each in settings.tiers.items()},
        default_tier=settings.default_tier,
        drafted={OFF: 0, CHAIN: profile.drafted_tokens},
        chunk_tokens=profile.chunk_tokens if profile.prefills else None,
        most_users=profile.max_running,
        hold_ms=steering.hold_ms,
        margin_frac=steering.margin_frac,
        caution_frac=steering.caution_frac,
        stale_ms=steering.stale_ms,
    )
    return FleetSpec(
        replicas=settings.replicas,
        replica=replica,
        config=config,
        gateways=settings.gateways,
        tick_ms=steering.tick_ms,
        trouble=Trouble(
            failures=_failures(settings),
            signal_delay_ms=trouble.signal_delay_ms,
            signal_loss_frac=trouble.signal_loss_frac,
            plan_delay_ms=trouble.plan_delay_ms,
            plan_loss_frac=trouble.plan_loss_frac,
        ),
    )


def offered_of(settings: SimulateSettings, trace: Requests, *, rate_s: float, seed: int) -> list[Offered]:
    """Return the requests of a trace at a rate: so many shifted copies of it, run so much faster that it fits."""
    traffic = settings.traffic
    copies = max(1, round(rate_s / trace.rate_s))
    whole = scaled(superposed(trace, copies, seed=seed), rate_s / (copies * trace.rate_s))
    span_ms = 1000.0 * (traffic.warm_up_s + traffic.counted_s)
    part = window(whole, start_ms=1000.0 * traffic.start_s, span_ms=span_ms)
    shares = [Share(_TENANT, tier, weight) for tier, weight in sorted(traffic.tier_shares.items())]
    most_prompt, most_output = (most or 2**31 for most in (traffic.most_prompt_tokens, traffic.most_output_tokens))
    return [
        Offered(
            at_ms=each.at_ms,
            tier=each.tier,
            prompt_tokens=min(each.prompt_tokens, most_prompt),
            output_tokens=min(each.output_tokens, most_output),
            prefix=each.prefix,
        )
        for each in arrivals(part, shares, seed=seed)
    ]


def simulated(settings: SimulateSettings, policy: str, offered: Sequence[Offered], seed: int) -> FleetRun:
    """Run a policy on requests. Raises ConfigError where there is no such policy."""
    spec, traffic = spec_of(settings), settings.traffic
    chosen = fleet_policy(policy, spec.config)
    texts = texts_of(settings.profile)
    pools = pooled_plans(spec, offered, texts, span_ms=_span_ms(settings)) if chosen.pooled else ()
    fleet = Fleet(spec, chosen, offered, texts, seed=seed, pools=pools)
    return fleet.run(_span_ms(settings) + 1000.0 * traffic.drain_s)


def cell_rows(settings: SimulateSettings, trace: str, cell: Cell, offered: Sequence[Offered]) -> list[dict[str, Any]]:
    """Run a cell and return its rows, one for each tier."""
    run = simulated(settings, cell.policy, offered, cell.seed)
    head = {"trace": trace, "replicas": settings.replicas, **vars(cell)}
    return [{**head, **row} for row in run_rows(settings, cell.policy, run)]


def run_rows(settings: SimulateSettings, policy: str, run: FleetRun) -> list[dict[str, Any]]:
    """Return a row for each tier of what was offered after the warm-up."""
    warm_ms, span_ms = 1000.0 * settings.traffic.warm_up_s, _span_ms(settings)
    counted_ms = span_ms - warm_ms
    tokens = sum(count for at_ms, count in run.tokens if warm_ms < at_ms <= span_ms)
    refused = settings.profile.attention_dp > 1 and fleet_policy(policy, spec_of(settings).config).steered
    rows = []
    for tier, terms in sorted(settings.tiers.items()):
        promise = Promise(terms.name, terms.promise_tok_s, terms.ttft_ms)
        own = [_result(each, warm_ms) for each in run.results if each.offered.tier == tier]
        own = [each for each in own if each.at_ms >= 0]
        row = tier_row(
            own,
            promise,
            span_ms=counted_ms,
            took_ms=counted_ms,
            throughput_tok_s=1000.0 * tokens / counted_ms,
        )
        missed = sum(not kept(each, promise) for each in own)
        extra = {
            "violations": missed,
            "rows_per_request": round(run.rows / max(1, run.row_requests), 3),
            "users_per_step": round(run.row_requests / max(1, run.steps), 2),
            "decisions": run.decisions,
            "refused_by_engine": REFUSED_BY_ENGINE if refused else "",
            "good_tokens_by_block": _by_block(own, promise, counted_ms),
        }
        rows.append(row | extra)
    return rows


def texts_of(profile: ProfileSettings) -> FleetTexts:
    """Return where answers come from. Raises ArtifactError where a file of recorded text is unusable."""
    return _texts(profile.texts, profile.drafts, profile.drafted_tokens, profile.acceptance_off_frac)


@dataclass(frozen=True)
class CutTexts:
    """Recorded answers, as many one after another as a length needs."""

    recorded: Any

    def answer(self, rng: np.random.Generator, tokens: int) -> Answer:
        """Draw an answer of so many tokens."""
        parts = [self.recorded.answer(rng)]
        while sum(len(part.survival) for part in parts) < tokens - 1:
            parts.append(self.recorded.answer(rng))
        survival = np.concatenate([part.survival for part in parts])[: tokens - 1]
        accepted = np.concatenate([part.accepted for part in parts])[: tokens - 1]
        return Answer(survival, accepted, parts[0].kind, parts[0].is_chain)


@lru_cache(maxsize=8)
def _texts(texts: str, drafts: str, nodes: int, off_frac: float) -> FleetTexts:
    if texts in _PUBLISHED:
        figures = published_figures(_PUBLISHED[texts])
        classes: Mapping[str, Any] = {
            name: each.model_copy(
                update={
                    "conditional_acceptance": tuple(min(0.995, off_frac * one) for one in each.conditional_acceptance)
                }
            )
            for name, each in figures.classes.items()
        }
        return PublishedTexts(figures.model_copy(update={"classes": classes}), nodes=nodes)
    return CutTexts(read_recorded(Path(texts), drafts))


@lru_cache(maxsize=8)
def _times(name: str) -> StepTimeModel:
    return StepTimeModel(read_table(Path(name)) if name.endswith(".json") else reference_table(name))


def _failures(settings: SimulateSettings) -> tuple[Failure, ...]:
    failures = settings.trouble.failures
    if failures is None:
        return ()
    at_ms = 1000.0 * (settings.traffic.warm_up_s + failures.after_s)
    lost = range(0, settings.replicas, failures.one_in)
    return tuple(Failure(at_ms, replica, 1000.0 * failures.for_s) for replica in lost)


def _span_ms(settings: SimulateSettings) -> float:
    return 1000.0 * (settings.traffic.warm_up_s + settings.traffic.counted_s)


_ERRORS = {"refused": "429 no room in time", "failed": "lost", "unfinished": "unfinished"}


def _result(result: SimResult, from_ms: float) -> Result:
    speed = result.speed_tok_s
    return Result(
        at_ms=result.offered.at_ms - from_ms,
        tokens=result.offered.output_tokens,
        ttft_ms=result.ttft_ms,
        tok_s=None if speed is None else min(speed, 1e9),
        error=_ERRORS.get(str(result.fate)),
    )


def _by_block(results: Sequence[Result], promise: Promise, counted_ms: float) -> list[int]:
    blocks = [0] * max(1, round(counted_ms / BLOCK_MS))
    for each in results:
        if promise.tok_s is not None and kept(each, promise):
            blocks[min(len(blocks) - 1, int(each.at_ms / BLOCK_MS))] += each.tokens
    return blocks
