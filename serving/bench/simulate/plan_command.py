"""Runs `sparktier plan`: the smallest cluster that keeps the promises of a traffic, what binds it, and its cost."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparktier.cluster.capacity import NONE, Attained, Sizes, binding, cost_per_million, smallest
from sparktier.cluster.traffic.requests import Requests
from sparktier.cluster.traffic.trace_files import read_trace
from sparktier.configs.errors import EXIT_FAILED
from sparktier.configs.report import untimed_meta, write_report
from sparktier.serving.bench.simulate.scenario import offered_of, run_rows, simulated
from sparktier.serving.bench.simulate.settings import SimulateSettings

POLICY = "sparktier"
# How much of a bound is taken away to see whether it binds.
_SLOWER, _LATER, _MORE = 0.5, 10, 4
Rows = list[dict[str, Any]]


def run(
    settings: SimulateSettings, *, trace: Path, rate_s: float | None, attain: float, most: int, report: Path | None
) -> int:
    """Print the plan, and write it where asked; 1 if no cluster of up to `most` replicas keeps the promises.

    Raises:
        ArtifactError: the trace, a text or table is unusable, or the report can't be written.
    """
    requests, console = read_trace(trace), Console(stderr=True)
    rate_s = requests.rate_s if rate_s is None else rate_s
    plan = Planned(settings, requests, rate_s, say=lambda text: console.print(text, highlight=False))
    rows = plan.rows(attain, most)
    if report is not None:
        write_report(report, untimed_meta("plan"), rows)
    _print(rows, rate_s, attain)
    return 0 if any(row["is_plan"] for row in rows) else EXIT_FAILED


class Planned:
    """Asks simulations of one traffic, at `rate_s` requests a second in all, for clusters of several sizes."""

    def __init__(
        self,
        settings: SimulateSettings,
        requests: Requests,
        rate_s: float,
        *,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._settings, self._say = settings, say
        self._offered = offered_of(settings, requests, rate_s=rate_s, seed=settings.seeds[0])
        self._rows: dict[int, Rows] = {}

    def attained(self, replicas: int) -> Attained:
        """Return what so many replicas attain, by tier."""
        if replicas not in self._rows:
            self._rows[replicas] = self._simulated(self._settings.model_copy(update={"replicas": replicas}))
        attained = attained_of(self._rows[replicas])
        self._say(f"{replicas} replicas: " + ", ".join(f"{tier} {frac:.3f}" for tier, frac in attained.items()))
        return attained

    def rows(self, attain_frac: float, most: int) -> Rows:
        """Return a row for each tier of the smallest cluster, and of one replica fewer and more.

        Where no cluster of up to `most` does, the rows are that one's and none is the plan.
        """
        sizes = Sizes(self.attained, attain_frac)
        found = smallest(sizes, most=most)
        bound, without = self.binding((found or most + 1) - 1)
        self._say(f"binding: {bound} ({', '.join(f'without {k}: {v:.3f}' for k, v in without.items())})")
        near = [most] if found is None else [size for size in (found - 1, found, found + 1) if size >= 1]
        rows = []
        for size in near:
            self.attained(size)
            price = self._settings.price_per_replica_hour
            for row in self._rows[size]:
                tok_s = row["throughput_tok_s"]
                cost = None if price is None else cost_per_million(size, price, tok_s)
                rows.append(
                    {
                        "replicas": size,
                        "is_plan": size == found,
                        "tier": row["tier"],
                        "requests": row["requests"],
                        "attainment_frac": attained_of([row])[row["tier"]],
                        "attained_tok_s_p50": row["attained_tok_s_p50"],
                        "throughput_tok_s": tok_s,
                        "binding_constraint": bound,
                        # What the smaller cluster's worst tier attains without it.
                        "relaxed_attainment_frac": without.get(bound),
                        "cost_per_million_tokens": None if cost is None else round(cost, 4),
                        "refused_by_engine": row["refused_by_engine"],
                    }
                )
        return rows

    def binding(self, replicas: int) -> tuple[str, Mapping[str, float]]:
        """Return what binds so many replicas, and what the worst tier attains without each constraint."""
        if replicas < 1:
            return NONE, {}
        settings = self._settings.model_copy(update={"replicas": replicas})
        asked = {name: partial(self.attained_with, changed) for name, changed in relaxed(settings)}
        return binding(asked)

    def attained_with(self, settings: SimulateSettings) -> Attained:
        """Return what a cluster of other settings attains with the same requests."""
        return attained_of(self._simulated(settings))

    def _simulated(self, settings: SimulateSettings) -> Rows:
        run = simulated(settings, POLICY, self._offered, settings.seeds[0])
        return run_rows(settings, POLICY, run)


def relaxed(settings: SimulateSettings) -> list[tuple[str, SimulateSettings]]:
    """Return the settings without each constraint: half the promise, ten times the wait, four times the room."""
    found = []
    for tier, terms in settings.tiers.items():
        if terms.promise_tok_s is not None:
            changed = terms.model_copy(update={"promise_tok_s": _SLOWER * terms.promise_tok_s})
            found.append((f"promise of {terms.name}", _with_tier(settings, tier, changed)))
        if terms.ttft_ms is not None:
            changed = terms.model_copy(update={"ttft_ms": _LATER * terms.ttft_ms})
            found.append((f"time to first token of {terms.name}", _with_tier(settings, tier, changed)))
    profile = settings.profile
    for name, key in (("KV tokens", "kv_tokens"), ("users at once", "max_running")):
        more = profile.model_copy(update={key: _MORE * getattr(profile, key)})
        found.append((name, settings.model_copy(update={"profile": more})))
    if profile.prefills:
        elsewhere = profile.model_copy(update={"prefills": False})
        found.append(("prefill", settings.model_copy(update={"profile": elsewhere})))
    return found


def attained_of(rows: Rows) -> Attained:
    """Return, by tier, the part of promises kept, or of requests served where nothing is promised."""
    found: dict[str, float] = {}
    for row in rows:
        if not row["requests"]:
            continue
        served = 1.0 - row["errors"] / row["requests"]
        kept = row["attainment_frac"]
        found[row["tier"]] = served if kept is None else kept
    return found


def _with_tier(settings: SimulateSettings, tier: int, terms: Any) -> SimulateSettings:
    return settings.model_copy(update={"tiers": {**settings.tiers, tier: terms}})


def _print(rows: Rows, rate_s: float, attain: float) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console.print(table)
    chosen = next((row for row in rows if row["is_plan"]), None)
    if chosen is None:
        console.print(
            f"No cluster of up to {rows[0]['replicas']} replicas keeps {attain:.0%} of every tier's promises."
        )
    else:
        console.print(
            f"{chosen['replicas']} replicas keep {attain:.0%} of every tier's promises at {rate_s:.3g} requests/s."
        )
    console.print(f"What binds: {rows[0]['binding_constraint']}.")
