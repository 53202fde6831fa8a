"""What `sparktier` and its tier-blind rival keep when something is not as they believe: paired runs of one cluster.

Cases: drafts accepted 20% more or less than the texts say, steps 20% slower or faster than the table that planner and
controller believe, signals 5 s late, and one replica in 16 lost. Every case has the same requests and seeds.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sparktier.cluster.traffic.trace_files import read_trace
from sparktier.configs.files import staged
from sparktier.configs.report import untimed_meta, write_report
from sparktier.serving.bench.kept_rows import KeptRows
from sparktier.serving.bench.simulate.command import digest_of
from sparktier.serving.bench.simulate.comparison import compared
from sparktier.serving.bench.simulate.scenario import Cell, cell_rows, offered_of
from sparktier.serving.bench.simulate.settings import FailureSettings, SimulateSettings, load_simulate_settings

OFF = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path, required=True)
    options = parser.parse_args()
    base = load_simulate_settings(options.config)
    trace = read_trace(options.trace)
    kept = KeptRows(options.json)
    rows: list[dict[str, Any]] = []
    for seed in base.seeds:
        for load in base.loads:
            offered = offered_of(base, trace, rate_s=load * base.replicas, seed=seed)
            for case, settings in cases(base).items():
                for policy in base.policies:
                    cell = Cell(load, policy, seed)
                    key = f"{digest_of(settings, options.trace)} {cell.name}"
                    found = kept.known.get(key)
                    if found is None:
                        found = cell_rows(settings, options.trace.name, cell, offered)
                        kept.keep(key, found)
                    rows += [{"case": case, **row} for row in found]
                    print(case, policy, seed, [row["attainment_frac"] for row in found], flush=True)
    write_report(options.json, untimed_meta("sensitivity"), rows)
    write_plot(rows, options.plot)
    kept.forget()
    print_table(rows)
    return 0


def cases(base: SimulateSettings) -> dict[str, SimulateSettings]:
    """Return the settings of each case; the first is as believed."""

    def profile(**changes: float) -> SimulateSettings:
        return base.model_copy(update={"profile": base.profile.model_copy(update=changes)})

    def trouble(**changes: object) -> SimulateSettings:
        return base.model_copy(update={"trouble": base.trouble.model_copy(update=changes)})

    return {
        "as believed": base,
        "accepted 20% less": profile(acceptance_off_frac=1 - OFF),
        "accepted 20% more": profile(acceptance_off_frac=1 + OFF),
        "steps 20% slower": profile(table_off_frac=1 + OFF),
        "steps 20% faster": profile(table_off_frac=1 - OFF),
        "signals 5 s late": trouble(signal_delay_ms=5000.0),
        "one replica in 16 lost": trouble(failures=FailureSettings(one_in=16, after_s=5.0, for_s=600.0)),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print, by case, promises kept of each promised tier, and what `sparktier` is worth beside each other policy."""
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        for policy in dict.fromkeys(row["policy"] for row in own):
            tiers = dict.fromkeys(row["tier"] for row in own if row["promise_tok_s"] is not None)
            kept = [f"{tier} {_mean(own, {'tier': tier, 'policy': policy}):.3f}" for tier in tiers]
            print(case, policy, *kept, sep=" | ")
        for each in compared(own):
            print(case, each)


def write_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG: promises kept of each promised tier, by case and policy."""
    tiers = list(dict.fromkeys(row["tier"] for row in rows if row["promise_tok_s"] is not None))
    names = list(dict.fromkeys(row["case"] for row in rows))
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    figure = Figure(figsize=(5.5 * len(tiers), 4.0), layout="constrained")
    for axes, tier in zip(figure.subplots(1, len(tiers), squeeze=False)[0], tiers, strict=True):
        for place, policy in enumerate(policies):
            kept = [_mean(rows, {"tier": tier, "policy": policy, "case": name}) for name in names]
            at = [number + 0.25 * (place - (len(policies) - 1) / 2) for number in range(len(names))]
            axes.barh(at, kept, height=0.22, label=policy)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_title(f"promises kept, {tier}", fontsize=9)
    figure.axes[0].legend(fontsize=7)
    with staged(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})


def _mean(rows: list[dict[str, Any]], where: Mapping[str, object]) -> float:
    values = [row["attainment_frac"] or 0.0 for row in rows if all(row[key] == value for key, value in where.items())]
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main())
