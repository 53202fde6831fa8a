"""What speculation costs around its model passes: `off` against an engine without it, and the overhead of each rung.

Two deployments of the demo model, one rank each, asked in turn and in changing order, so that the machine's drift hits
both alike. Processes of the same program differ by several percent for as long as they live, so every pair is started
anew --pairs times. Counts the engine's own time of decode steps. The cost of a step doesn't depend on what is accepted:
without --draft it is the shipped one. Run it alone: `make bench`.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import scipy.stats

from sparktier.configs.report import report_meta, write_report
from sparktier.serving.bench.counters import Totals
from sparktier.serving.bench.measured_replica import MeasuredReplica, deployed
from sparktier.serving.bench.measurements import RUNGS as LADDER
from sparktier.serving.bench.measurements import median_interval
from sparktier.serving.clients.replica import OK

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
RUNGS = {name: rung for rung, (_, name) in LADDER.items()}
# What the project promises: `off` over plain, and the time outside model passes over a step.
MOST_OFF_RATIO, MOST_OVERHEAD_FRAC = 1.03, 0.10
Pair = Mapping[str, Sequence[Totals]]


@dataclass(frozen=True)
class Asked:
    """One turn: so many answers at once, each of so many tokens, at a temperature."""

    batch: int
    tokens: int
    temperature: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48, help="length of each answer")
    parser.add_argument("--repeats", type=int, default=10, help="turns of each kind and pair")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of deployments, one after the other")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--accept-rule", choices=["match", "ratio"], default="match")
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--rung", action="append", choices=list(RUNGS), help="repeatable (default: all)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    meta = report_meta("overhead", seed=None)
    asked = Asked(options.batch, options.tokens, options.temperature)
    speculation = [f"draft_path={options.draft or 'demo'}", f"accept_rule={options.accept_rule}"]
    rungs, pairs = options.rung or list(RUNGS), []
    for number in range(options.pairs):
        with both(speculation, plain_first=number % 2 == 0) as (plain, ladder):
            pairs.append(measure(plain, ladder, asked, rungs=rungs, repeats=options.repeats))
        so_far = {name: round(statistics.median(ratios(pairs[-1], name)), 3) for name in rungs}
        print(f"pair {number + 1} of {options.pairs}:", so_far, flush=True)
    rows = [judged(name, pairs) for name in rungs]
    for row in rows:
        print(row)
    if options.json:
        settings = {**asdict(asked), "accept_rule": options.accept_rule}
        write_report(options.json, meta, [{**settings, **row} for row in rows])
    return 0 if all(row["kept"] for row in rows) else 1


@contextmanager
def both(speculation: Sequence[str], *, plain_first: bool) -> Iterator[tuple[MeasuredReplica, MeasuredReplica]]:
    """Yield an engine without speculation and one with every rung and the keys `speculation` set."""
    # A health probe of the one that idles is a forward pass beside the other's steps.
    single = ["replicas.tensor_parallel=1", "replicas.expert_parallel=1", "supervision.probe_interval_s=3600"]
    none = [*single, "speculation.method=none", "speculation.draft_path=null", "server.port=8280"]
    ladder = [f"speculation.{key}" for key in ("method=tree", *speculation)]
    tree = [*single, *ladder, "server.port=8281"]
    first, second = (none, tree) if plain_first else (tree, none)
    with deployed(CONFIG, first) as one, deployed(CONFIG, second) as other:
        yield (one, other) if plain_first else (other, one)


def measure(
    plain: MeasuredReplica, ladder: MeasuredReplica, asked: Asked, *, rungs: Sequence[str], repeats: int
) -> dict[str, list[Totals]]:
    """Return what each rung and plain did in `repeats` rounds in which all take turns."""
    found: dict[str, list[Totals]] = {name: [] for name in ("plain", *rungs)}
    for repeat in range(-1, repeats):
        # The second in every round would get the same share of whatever has a rhythm.
        for name in list(found)[:: -1 if repeat % 2 else 1]:
            engine = plain if name == "plain" else ladder
            if name != "plain":
                ladder.set_plan(rung=RUNGS[name], rows=0)
            totals = loaded(engine, asked)
            if repeat >= 0:  # the first round warms up
                found[name].append(totals)
    return found


def loaded(engine: MeasuredReplica, asked: Asked) -> Totals:
    """Answer prompts of equal length at once, and return what the engine did."""
    before = engine.totals()
    with ThreadPoolExecutor(asked.batch) as users:
        for answer in [users.submit(full_answer, engine, number, asked) for number in range(asked.batch)]:
            answer.result()
    return engine.totals().since(before)


def full_answer(engine: MeasuredReplica, number: int, asked: Asked) -> None:
    """Answer a prompt to its full length, so that the batch is whole in every step."""
    params = {
        "max_new_tokens": asked.tokens,
        "temperature": asked.temperature,
        "sampling_seed": number,
        "ignore_eos": True,
    }
    prompt = [100 + 7 * number + place for place in range(16)]
    answer = engine._client.ask("POST", "/generate", json={"input_ids": prompt, "sampling_params": params})
    assert answer.status == OK, answer.text


def ratios(pair: Pair, rung: str) -> list[float]:
    """Step time of `rung` over plain's in each round, which timed both within seconds."""
    return [mine.step_ms / theirs.step_ms for mine, theirs in zip(pair[rung], pair["plain"], strict=True)]


def judged(rung: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Judge `rung`: the ratio to plain is promised for `off`, the overhead for all.

    The ratio is the mean over pairs of the median over rounds. Its 95% interval is over pairs; of one pair,
    over its rounds, which leaves out how much processes differ.
    """
    own = [totals for pair in pairs for totals in pair[rung]]
    plain = [totals for pair in pairs for totals in pair["plain"]]
    each = [statistics.median(ratios(pair, rung)) for pair in pairs]
    ratio = statistics.fmean(each)
    interval = mean_interval(each) if len(each) > 1 else median_interval(ratios(pairs[0], rung))
    overhead = statistics.median(totals.part_ms["overhead"] / sum(totals.part_ms.values()) for totals in own)
    return {
        "rung": rung,
        "step_ms": round(statistics.median(t.step_ms for t in own), 2),
        "plain_step_ms": round(statistics.median(t.step_ms for t in plain), 2),
        "ratio_to_plain": round(ratio, 3),
        "ratio_interval": [round(end, 3) for end in interval],
        "ratio_of_pairs": [round(one, 3) for one in each],
        "overhead_frac": round(overhead, 3),
        "parts_ms": {
            part: round(statistics.median(t.part_ms[part] / t.steps for t in own), 2) for part in own[0].part_ms
        },
        "kept": overhead <= MOST_OVERHEAD_FRAC and (rung != "off" or ratio <= MOST_OFF_RATIO),
    }


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the mean, by Student's t: for a handful of values a bootstrap's is too narrow."""
    found = scipy.stats.t.interval(0.95, len(values) - 1, statistics.fmean(values), scipy.stats.sem(values))
    return float(found[0]), float(found[1])


if __name__ == "__main__":
    sys.exit(main())
