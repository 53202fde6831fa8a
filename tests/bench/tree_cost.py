"""What a tree costs beside its verify pass: expansion, selection, acceptance and compaction for 32 requests x 32 rows.

The verify pass is the engine's own, demo model, one rank; the tree's parts are timed here on as many threads, with the
shipped drafter's Markov head and block logits of its vocabulary, once the engine is idle. Run it alone.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from overhead import loaded
from safetensors.torch import load_file
from step_time import meta

from sparktier.kernels.accept_tree import walk_matching
from sparktier.kernels.compact import compaction_plan
from sparktier.kernels.expand import MarkovHead, Shape, expand_top
from sparktier.kernels.search import best_token
from sparktier.kernels.select import select_rows
from sparktier.serving.bench.target import deployed
from sparktier.serving.demo_drafter import SEED
from sparktier.serving.engine.speculation.plan import Rung

ROOT = Path(__file__).resolve().parents[2]
BLOCK, PARENTS, CHILDREN, SHORTLIST = 5, 4, 4, 256
LAYERS, KV_WIDTH = 30, 4 * 64  # of the demo model, in one rank
MOST_FRAC = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24, help="length of each answer")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    verify_ms, rows = verify_pass(options.requests, options.rows, options.tokens)
    parts = tree_parts(options.requests, options.rows, options.repeats)
    spent = sum(parts.values())
    row = {
        "requests": options.requests,
        "rows_per_request": round(rows, 1),
        "verify_ms": round(verify_ms, 1),
        "parts_ms": {part: round(ms, 2) for part, ms in parts.items()},
        "tree_frac": round(spent / verify_ms, 4),
        "kept": spent <= MOST_FRAC * verify_ms,
    }
    print(row)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"meta": meta(load), "rows": [row]}, indent=2))
    return 0 if row["kept"] else 1


def verify_pass(requests: int, rows: int, tokens: int) -> tuple[float, float]:
    """Return the mean time of the engine's verify pass and the rows each request had in it."""
    single = ["replicas.tensor_parallel=1", "replicas.expert_parallel=1", f"replicas.max_running_requests={requests}"]
    tree = ["speculation.method=tree", f"speculation.tree_rows={rows}", "server.port=8282"]
    with deployed(ROOT / "configs" / "demo.yaml", [*single, *tree]) as engine:
        engine.set_plan(rung=Rung.TREE, rows=0)
        loaded(engine, batch=requests, tokens=tokens)
        seen = loaded(engine, batch=requests, tokens=tokens)
    return seen.part_ms["verify"] / seen.steps, seen.rows / seen.rounds


def tree_parts(requests: int, rows: int, repeats: int) -> dict[str, float]:
    """Return the median time of each part of a tree, in milliseconds."""
    generator = torch.Generator().manual_seed(SEED)
    weights = load_file(ROOT / "drafter" / "demo_draft" / "model.safetensors")
    head = MarkovHead(weights["markov_head.markov_w1.weight"], weights["markov_head.markov_w2.weight"])
    vocab = len(head.w1)
    block = (torch.randn(requests, BLOCK, vocab, generator=generator) * 3).bfloat16()
    anchors = torch.randint(vocab, (requests,), generator=generator)
    target = torch.randn(requests * rows, vocab, generator=generator)
    first = torch.arange(requests) * rows
    slots = torch.arange(requests * rows).view(requests, rows)
    pools = torch.zeros(2 * LAYERS, requests * rows + 1, KV_WIDTH, dtype=torch.bfloat16)

    def expand() -> Any:
        return expand_top(
            anchors=anchors,
            block_logits=block,
            head=head,
            temperatures=torch.ones(requests),
            shape=Shape(BLOCK, PARENTS, CHILDREN),
            edge_acceptance=lambda q, _depth: q,
            shortlist=SHORTLIST,
        )

    candidates = expand()
    budgets = torch.full((requests,), rows)
    tree = select_rows(candidates=candidates, row_budgets=budgets, width=rows).tree

    def accept() -> Any:
        return walk_matching(
            tree=tree, choose=lambda request, row: best_token(scores=target[first[request] + row]), max_depth=BLOCK
        )

    path = accept().path

    def compact() -> None:
        plan = compaction_plan(path=path, slots=slots)
        for pool in pools:
            pool[plan.destination.flatten()] = pool[plan.source.flatten()]

    return {
        "expand": timed(expand, repeats),
        "select": timed(lambda: select_rows(candidates=candidates, row_budgets=budgets, width=rows), repeats),
        "accept": timed(accept, repeats),
        "compact": timed(compact, repeats),
    }


def timed(part: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        part()
        times.append(1000.0 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
