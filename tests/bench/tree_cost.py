"""What a tree costs beside its verify pass: expansion, selection, acceptance and compaction for 32 requests x 32 rows.

The verify pass is the engine's own, demo model, one rank, its rows the most that the drafter's block allows; the tree's
parts are timed here on as many threads, at the same sizes, once the engine has ended. Walks go down to the last level,
which is the most that acceptance can cost. Run it alone.
"""

import argparse
import sys
from pathlib import Path

from overhead import Asked, loaded
from tree_parts import Round, parts_ms

from sparktier.configs.plan_keys import Rung
from sparktier.configs.report import report_meta, write_report
from sparktier.kernels.expand import Shape
from sparktier.serving.bench.measured_replica import deployed

ROOT = Path(__file__).resolve().parents[2]
# The demo's.
VOCAB, MARKOV_RANK, BLOCK, PARENTS, CHILDREN, SHORTLIST = 49152, 64, 5, 4, 4, 256
SEED = 0
MOST_FRAC = 0.05
WALKS = ("accept_greedy", "accept_sampled")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24, help="length of each answer")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    meta = report_meta("tree_cost", SEED)
    verify_ms, rows = verify_pass(options.requests, options.rows, options.tokens)
    size = {"batch": options.requests, "rows": options.rows, "vocab": VOCAB, "rank": MARKOV_RANK, "seed": SEED}
    parts = parts_ms(Round(**size, shape=Shape(BLOCK, PARENTS, CHILDREN), shortlist=SHORTLIST), options.repeats)
    tree_fracs = {walk: spent_ms(parts, walk) / verify_ms for walk in WALKS}
    row = {
        "requests": options.requests,
        "rows_per_request": round(rows, 1),
        "verify_ms": round(verify_ms, 1),
        "parts": parts,
        "tree_frac": {walk: round(frac, 4) for walk, frac in tree_fracs.items()},
        "kept": max(tree_fracs.values()) <= MOST_FRAC,
    }
    print(row)
    if options.json:
        write_report(options.json, meta, [row])
    return 0 if row["kept"] else 1


def spent_ms(parts: dict[str, dict[str, float]], walk: str) -> float:
    """Return what a round's parts take together, of the two ways to accept this one."""
    return sum(part["median_ms"] for name, part in parts.items() if name not in WALKS or name == walk)


def verify_pass(requests: int, rows: int, tokens: int) -> tuple[float, float]:
    """Return the mean time of the engine's verify pass and the rows each request had in it."""
    single = ["replicas.tensor_parallel=1", "replicas.expert_parallel=1", f"replicas.max_running_requests={requests}"]
    tree = ["speculation.method=tree", f"speculation.tree_rows={rows}", "server.port=8282"]
    with deployed(ROOT / "configs" / "demo.yaml", [*single, *tree]) as engine:
        engine.set_plan(rung=Rung.TREE, rows=0)
        asked = Asked(requests, tokens, temperature=0.0)
        loaded(engine, asked)
        seen = loaded(engine, asked)
    return seen.part_ms["verify"] / seen.steps, seen.rows / seen.rounds


if __name__ == "__main__":
    sys.exit(main())
