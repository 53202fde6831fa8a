"""What speculation costs around its model passes: `off` against an engine without it, and the overhead of each rung.

Two deployments of the demo model, one rank each, asked in turn, so that the machine's drift hits both alike. Counts the
engine's own time of decode steps. The cost of a step doesn't depend on what is accepted: without --draft it is the
shipped one. Run it alone: `make bench`.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from step_time import meta

from sparktier.serving.bench.rows import RUNGS as LADDER
from sparktier.serving.bench.rows import median_interval
from sparktier.serving.bench.target import Target, Totals, deployed

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
RUNGS = {name: rung for rung, (_, name) in LADDER.items()}
# What the project promises: `off` over plain, and the time outside model passes over a step.
MOST_OFF_RATIO, MOST_OVERHEAD_FRAC = 1.03, 0.10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48, help="length of each answer")
    parser.add_argument("--repeats", type=int, default=10, help="turns of each kind")
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--rung", action="append", choices=list(RUNGS), help="repeatable (default: all)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with both(options.draft) as (plain, ladder):
        size = {"batch": options.batch, "tokens": options.tokens, "repeats": options.repeats}
        rows = measure(plain, ladder, rungs=options.rung or list(RUNGS), **size)
    for row in rows:
        print(row)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"meta": meta(load), "rows": rows}, indent=2))
    return 0 if all(row["kept"] for row in rows) else 1


@contextmanager
def both(draft: Path | None) -> Iterator[tuple[Target, Target]]:
    """Yield an engine without speculation and one with every rung."""
    # A health probe of the one that idles is a forward pass beside the other's steps.
    single = ["replicas.tensor_parallel=1", "replicas.expert_parallel=1", "supervision.probe_interval_s=3600"]
    none = ["speculation.method=none", "speculation.draft_path=null"]
    tree = ["speculation.method=tree", f"speculation.draft_path={draft or 'demo'}"]
    with (
        deployed(CONFIG, [*single, *none, "server.port=8280"]) as plain,
        deployed(CONFIG, [*single, *tree, "server.port=8281"]) as ladder,
    ):
        yield plain, ladder


def measure(
    plain: Target, ladder: Target, *, rungs: Sequence[str], batch: int, tokens: int, repeats: int
) -> list[dict[str, Any]]:
    """Return a row a rung: medians and quartiles over `repeats` rounds in which every rung and plain take turns."""
    found: dict[str, list[Totals]] = {name: [] for name in ("plain", *rungs)}
    for repeat in range(-1, repeats):
        for name in found:
            engine = plain if name == "plain" else ladder
            if name != "plain":
                ladder.set_plan(rung=RUNGS[name], rows=0)
            totals = loaded(engine, batch=batch, tokens=tokens)
            if repeat >= 0:  # the first round warms up
                found[name].append(totals)
    return [row(name, found[name], found["plain"]) for name in rungs]


def loaded(engine: Target, *, batch: int, tokens: int) -> Totals:
    """Answer `batch` prompts of equal length at once, and return what the engine did."""
    before = engine.totals()
    with ThreadPoolExecutor(batch) as users:
        for answer in [users.submit(full_answer, engine, number, tokens) for number in range(batch)]:
            answer.result()
    return engine.totals().since(before)


def full_answer(engine: Target, number: int, tokens: int) -> None:
    """Answer a prompt to its full length, so that the batch is whole in every step."""
    params = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    prompt = [100 + 7 * number + place for place in range(16)]
    engine._client.post("/generate", json={"input_ids": prompt, "sampling_params": params}).raise_for_status()


def row(rung: str, own: Sequence[Totals], plain: Sequence[Totals]) -> dict[str, Any]:
    """Judge `rung`: the ratio to plain is promised for `off`, the overhead for all.

    The ratio is the median over rounds, each of which timed both within seconds; its 95% interval resamples rounds.
    """
    overheads = [totals.part_ms["overhead"] / sum(totals.part_ms.values()) for totals in own]
    ratios = [mine.step_ms / theirs.step_ms for mine, theirs in zip(own, plain, strict=True)]
    ratio, overhead = statistics.median(ratios), statistics.median(overheads)
    return {
        "rung": rung,
        "step_ms": round(statistics.median(t.step_ms for t in own), 2),
        "plain_step_ms": round(statistics.median(t.step_ms for t in plain), 2),
        "ratio_to_plain": round(ratio, 3),
        "ratio_interval": [round(end, 3) for end in median_interval(ratios)],
        "ratio_quartiles": [round(value, 3) for value in statistics.quantiles(ratios, n=4)[::2]],
        "overhead_frac": round(overhead, 3),
        "parts_ms": {
            part: round(statistics.median(t.part_ms[part] / t.steps for t in own), 2) for part in own[0].part_ms
        },
        "kept": overhead <= MOST_OVERHEAD_FRAC and (rung != "off" or ratio <= MOST_OFF_RATIO),
    }


if __name__ == "__main__":
    sys.exit(main())
