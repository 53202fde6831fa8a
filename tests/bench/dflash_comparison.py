"""DSpark against DFlash: accepted length at temperature 1 on held-out answers, same data, steps and parameters.

DFlash gets what DSpark's Markov head holds as a wider MLP. One pair of drafters a seed; a paired bootstrap over answers
tells the gain. A call that was cut off goes on where it stopped. Run it alone, on one thread.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparktier.drafter import demo_recipe
from sparktier.drafter.checkpoint import load_draft
from sparktier.drafter.compare import compare
from sparktier.drafter.distributed import Place
from sparktier.drafter.evaluate import evaluate
from sparktier.drafter.feature_store import FeatureStore
from sparktier.drafter.joined_stores import JoinedStores
from sparktier.drafter.report import report_meta, write_report
from sparktier.drafter.target import Target, read_target
from sparktier.drafter.train import train
from sparktier.drafter.train_settings import DraftShape, TrainSettings
from sparktier.serving.demo_drafter import DEMO_MASK_TOKEN

# DSpark's losses and DFlash's, which knows cross entropy alone.
LOSSES = {"dspark": {}, "dflash": {"cross_entropy": 1.0, "total_variation": 0.0, "confidence": 0.0}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--features", type=Path, action="append", required=True, help="stores to train on")
    parser.add_argument("--answers", type=Path, action="append", required=True, help="stores to evaluate on")
    parser.add_argument("--work", type=Path, default=Path("out/dflash"))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    meta = report_meta("dflash_comparison", seed=1)
    torch.set_flush_denormal(True)
    target = read_target(options.target)
    rows: list[dict[str, Any]] = []
    for seed in range(1, options.seeds + 1):
        drafts = {
            name: trained(name, options.target, options.features, options.work, options.steps, seed) for name in LOSSES
        }
        for store in options.answers:
            rows.append(compared(drafts, target, store, seed))
            print(rows[-1], flush=True)
    if options.json:
        write_report(options.json, meta, rows)
    return 0


def shapes(vocab: int, hidden: int) -> dict[str, DraftShape]:
    """The two drafts; DFlash's MLP takes up the two tables of the Markov head."""
    dspark = demo_recipe.shape(DEMO_MASK_TOKEN)
    wider = 2 * vocab * dspark.markov_rank // (3 * hidden * dspark.num_hidden_layers)
    plain = {"markov_rank": 0, "confidence_head": False, "intermediate_size": dspark.intermediate_size + wider}
    return {"dspark": dspark, "dflash": dspark.model_copy(update=plain)}


def trained(name: str, target: Path, stores: Sequence[Path], work: Path, steps: int, seed: int) -> Path:
    """Train one draft, or go on with it, and return its folder."""
    config = json.loads((target / "config.json").read_text())
    settings = TrainSettings(
        target=target,
        run_dir=work / f"{name}-{seed}",
        draft=shapes(config["vocab_size"], config["hidden_size"])[name],
        seed=seed,
        steps=steps,
        row_tokens=512,
        rows_per_step=4,
        anchors_per_row=40,
        loss_columns=6144,
        learning_rate=1e-3,
        held_out_sequences=16,
        evaluate_every_steps=steps,
        checkpoint_every_steps=max(1, steps // 2),
        **LOSSES[name],
    )
    return train(settings, JoinedStores(stores), Place(0, 1, torch.device("cpu")), Console(stderr=True), {})


def compared(drafts: dict[str, Path], target: Target, store: Path, seed: int) -> dict[str, Any]:
    """Evaluate both on the answers of `store` and return the gain of the first."""
    found = {}
    for name, folder in drafts.items():
        model = load_draft(folder, target)
        model.set_target_tables(target.embedding, target.head)
        [found[name]] = evaluate(model, FeatureStore(store), name, [seed])
    gain = compare(found["dspark"], found["dflash"], seed)
    lengths = {name: round(float(evaluation.row()["accepted_length"] or 0), 4) for name, evaluation in found.items()}
    return {
        "answers": store.name,
        "count": gain.answers,
        "seed": seed,
        **lengths,
        "gain_frac": round(gain.gain_frac, 4),
        "low_frac": round(gain.low_frac, 4),
        "high_frac": round(gain.high_frac, 4),
    }


if __name__ == "__main__":
    sys.exit(main())
