"""The cells of `sparktier bench tiers`: every policy on the same users and texts, in virtual time."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sparktier.cluster.simulator.answers import Answer, Texts
from sparktier.cluster.simulator.outcome import LENIENT, STRICT, mean_speed_tok_s, tier_rows
from sparktier.cluster.simulator.policies import Policy, names_in_order, policy_of
from sparktier.cluster.simulator.published_text import PublishedTexts, published_figures
from sparktier.cluster.simulator.recorded_text import RecordedTexts, read_recorded
from sparktier.cluster.simulator.sim_engine import EngineLimits, SimEngine, SimRequest
from sparktier.cluster.simulator.users import Served, SteppingEngine, serve
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.files import sha256_of
from sparktier.configs.step_times import reference_table
from sparktier.serving.bench.tiers.settings import TableSettings, TiersSettings

Rows = list[dict[str, Any]]
Engines = Callable[[TableSettings, int, Policy, float], SteppingEngine]
"""(table, users, policy, promise in tokens per second) -> an engine to serve them, without a request."""
# Rises when the same settings give other figures.
_FORM = 1
_AXES = ("policies", "users", "promise_factors", "strict_fracs")


@dataclass(frozen=True)
class Unit:
    """Cells that share their users and texts: one table, number of users, strict share and seed."""

    table: str
    users: int
    strict_frac: float
    seed: int

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.table}, {self.users} users, {self.strict_frac:.0%} strict, seed {self.seed}"


def units(settings: TiersSettings) -> list[Unit]:
    """Return every unit of a measurement, in order."""
    return [
        Unit(name, users, frac, seed)
        for name, table in settings.tables.items()
        for users in table.users
        for frac in table.strict_fracs
        for seed in settings.seeds
    ]


def table_digest(settings: TiersSettings, name: str) -> str:
    """Return the digest of all that decides the figures of a table's cells, which their rows don't say themselves."""
    table = settings.tables[name]
    kept = table.model_dump(mode="json", exclude={"recorded", "deployment", *_AXES})
    parts = [_FORM, name, kept, settings.planner.model_dump(mode="json")]
    parts.append(reference_table(table.step_times).model_dump(mode="json"))
    parts.append(published_figures().model_dump(mode="json") if table.recorded is None else sha256_of(table.recorded))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def simulated(table: TableSettings, users: int, policy: Policy, _promise_tok_s: float) -> SteppingEngine:
    """Return an engine without a model."""
    times = StepTimeModel(reference_table(table.step_times))
    return SimEngine(policy, times=times, true_times=times, limits=limits_of(table, users))


def limits_of(table: TableSettings, users: int) -> EngineLimits:
    """Return the limits of an engine for so many users of a table."""
    return EngineLimits(
        max_running=users,
        kv_tokens=table.kv_tokens,
        chunk_tokens=table.chunk_tokens,
        nodes=table.nodes,
        rung=table.rung,
        live_shares=table.live_shares,
    )


def unit_rows(unit: Unit, settings: TiersSettings, engines: Engines = simulated) -> Rows:
    """Run all policies and promises of a unit on `engines` and return their rows."""
    table, digest = settings.tables[unit.table], table_digest(settings, unit.table)
    run = _Runs(unit, table, engines)
    names = names_in_order(settings.policies_of(unit.table))
    planner = settings.planner
    promise_tok_s = mean_speed_tok_s(run.of(policy_of("blind", planner.rules, strict_weight=1.0), 0.0))
    rows: Rows = []
    for factor in table.promise_factors:
        promise = factor * promise_tok_s
        for name in names:
            served = run.of(policy_of(name, planner.rules, strict_weight=planner.strict_weight), promise)
            head = {
                "table": unit.table,
                "table_digest": digest,
                "users": unit.users,
                "strict_frac": unit.strict_frac,
                "promise_factor": factor,
                "seed": unit.seed,
                "load": unit.users,
                "policy": name,
            }
            rows += [{**head, **row} for row in tier_rows(served, promise_tok_s=promise)]
    return rows


class _Runs:
    """The runs of a unit. A policy that heeds no promise is run once."""

    def __init__(self, unit: Unit, table: TableSettings, engines: Engines) -> None:
        self._unit, self._table, self._engines = unit, table, engines
        self._texts = texts_of(table)
        self._answer = lru_cache(maxsize=None)(self._drawn)
        self._done: dict[tuple[str, float], Served] = {}

    def of(self, policy: Policy, promise_tok_s: float) -> Served:
        """Return what users get under `policy`."""
        key = (policy.name, promise_tok_s if policy.heeds_promises else 0.0)
        if key not in self._done:
            unit, table = self._unit, self._table
            engine = self._engines(table, unit.users, policy, promise_tok_s)

            def request(user: int, turn: int) -> SimRequest:
                return self._request(user, turn, promise_tok_s)

            self._done[key] = serve(engine, request, users=unit.users, turns=table.turns)
        return self._done[key]

    def _request(self, user: int, turn: int, promise_tok_s: float) -> SimRequest:
        # Strict users are spread evenly over all.
        strict = int((user + 1) * self._unit.strict_frac) > int(user * self._unit.strict_frac)
        tier = STRICT if strict else LENIENT
        answer, prompt = self._answer(user, turn), self._table.prompt_tokens
        prompt = answer.prompt_tokens if prompt is None else prompt
        return SimRequest((user, turn), tier, promise_tok_s if strict else 0.0, prompt, answer)

    def _drawn(self, user: int, turn: int) -> Answer:
        rng = np.random.default_rng([self._unit.seed, user, turn])
        answer = self._texts.answer(rng)
        if turn > 0:
            return answer
        # The first answer is only the rest of one: users are at different places when it counts.
        left = 1 + int(rng.random() * (len(answer.survival) - 1))
        return answer.last(left)


@lru_cache(maxsize=4)
def _published(nodes: int) -> PublishedTexts:
    return PublishedTexts(published_figures(), nodes=nodes)


@lru_cache(maxsize=4)
def _recorded(path: Path, drafts: str) -> RecordedTexts:
    return read_recorded(path, drafts)


def texts_of(table: TableSettings) -> Texts:
    """Return where a table's answers come from. Raises ArtifactError where the file of recorded text is unusable."""
    return _published(table.nodes) if table.recorded is None else _recorded(table.recorded, table.drafts)


def measured(
    settings: TiersSettings, *, engines: Engines, known: Mapping[str, Rows], keep: Callable[[str, Rows], None]
) -> Iterator[tuple[Unit, Rows]]:
    """Yield each unit with its rows.

    Args:
        settings: what to measure.
        engines: what serves the users.
        known: rows of units that an earlier run has done, by key.
        keep: called with the key and rows of each unit that was run.
    """
    for unit in units(settings):
        key = unit_key(unit, settings)
        rows = known.get(key)
        if rows is None:
            rows = unit_rows(unit, settings, engines)
            keep(key, rows)
        yield unit, rows


def unit_key(unit: Unit, settings: TiersSettings) -> str:
    """Return the key of a unit's rows: they depend on nothing else."""
    policies: Sequence[str] = names_in_order(settings.policies_of(unit.table))
    factors = settings.tables[unit.table].promise_factors
    return f"{table_digest(settings, unit.table)} {unit.name} {','.join(policies)} {','.join(map(str, factors))}"
