"""Accepted length of trees against chains of as many verified rows, on stored answers; a paired bootstrap over answers.

`PYTHONPATH=tests .venv/bin/python tests/bench/tree_length.py --draft FOLDER --target FOLDER --features STORE ...`

Everything is under target-match, which takes the target's own tokens; chains of the ratio rule are shown beside it.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparktier.configs.report import report_meta, write_report
from sparktier.drafter.data.feature_store import FeatureStore
from sparktier.drafter.data.features import FeatureSource
from sparktier.drafter.data.target import read_target
from sparktier.drafter.evaluation.compare import compare
from sparktier.drafter.evaluation.evaluate import Evaluation, evaluate
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.kernels.expand import Shape
from sparktier.serving.engine.speculation.edge_acceptance import read_edges
from support.oracles.tree_replay import TreePlan, chain_plan, replay_trees


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--features", type=Path, action="append", required=True)
    parser.add_argument("--rows", type=int, action="append", help="of a tree (default: the block's plus one)")
    parser.add_argument("--parents", type=int, default=4)
    parser.add_argument("--children", type=int, default=4)
    parser.add_argument("--shortlist", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    meta = report_meta("tree_length", options.seed)
    target = read_target(options.target)
    model = load_draft(options.draft, target)
    rows = [row for folder in options.features for row in measure(model, FeatureStore(folder), options)]
    if options.json:
        write_report(options.json, meta, rows)
    return 0


def measure(model: DraftModel, source: FeatureSource, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per tree size: both lengths, the gain over the chain of target-match, and over that of the ratio rule.

    An engine drafts its chains from the whole vocabulary, and those that a planner paces from a short list, as trees.
    """
    gamma = model.config.block_size
    temperature = torch.tensor([source.spec.temperature])
    edges = read_edges(options.draft, device=temperature.device).of(temperature, greedy=temperature <= 0)
    shape = Shape(gamma, options.parents, options.children)
    chain = replayed(model, source, "chain", chain_plan(gamma))
    paced = replayed(model, source, "paced", TreePlan(Shape(gamma, 1, 1), gamma + 1, edges, options.shortlist))
    ratio = evaluate(model, source, "ratio", [options.seed])[0]
    found = []
    for size in options.rows or [gamma + 1]:
        tree = replayed(model, source, "tree", TreePlan(shape, size, edges, options.shortlist))
        over_chain, over_ratio = compare(tree, chain, options.seed), compare(tree, ratio, options.seed)
        found.append(
            {
                "dataset": source.spec.dataset,
                "temperature": source.spec.temperature,
                "rows": size,
                "chain_length": chain.rounds().accepted_length,
                "paced_chain_length": paced.rounds().accepted_length,
                "ratio_chain_length": ratio.rounds().accepted_length,
                "tree_length": tree.rounds().accepted_length,
                "gain_frac": over_chain.gain_frac,
                "gain_low_frac": over_chain.low_frac,
                "gain_high_frac": over_chain.high_frac,
                "gain_over_ratio_frac": over_ratio.gain_frac,
                "gain_over_ratio_low_frac": over_ratio.low_frac,
                "answers": over_chain.answers,
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def replayed(model: DraftModel, source: FeatureSource, name: str, plan: TreePlan) -> Evaluation:
    """The rounds that drafting by `plan` takes on every answer of a source."""
    spec, order = source.spec, range(len(source.lengths_tokens))
    replay = partial(replay_trees, model, temperature=spec.temperature, plan=plan)
    return Evaluation(
        drafter=name,
        dataset=spec.dataset,
        temperature=spec.temperature,
        seed=0,
        replays=tuple(replay(record) for record in source.read(order)),
        distinct_4gram_frac=0.0,
        temperatures=(1.0,) * model.config.block_size,
        confident=False,
    )


if __name__ == "__main__":
    sys.exit(main())
