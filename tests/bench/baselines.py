"""DSpark, DFlash, EAGLE-3 and MTP-1 on one target: same data, steps and evaluation, each against its untrained self.

The target is made up (`support/toy_training.py`), so a run takes a minute; `--world` names a folder with `target`,
features to train on in `store` and features to evaluate on in `answers`, and then the drafts have the demo's shape.
Drafters are evaluated offline, without an engine.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparktier.configs.report import report_meta, write_report
from sparktier.drafter.data.feature_store import FeatureStore
from sparktier.drafter.data.target import read_target
from sparktier.drafter.demo import recipe as demo_recipe
from sparktier.drafter.evaluation.compare import compare
from sparktier.drafter.evaluation.evaluate import Evaluation, evaluate
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.drafter.training.distributed import DistributedContext, init_distributed
from sparktier.drafter.training.train import build_model, train
from sparktier.drafter.training.train_settings import TrainSettings
from sparktier.serving.drafting.demo_drafter import DEMO_MASK_TOKEN
from support.toy_training import toy_settings, write_world

_TOKENS_ALONE = {"cross_entropy": 1.0, "total_variation": 0.0, "confidence": 0.0}
# What sets each drafter apart: its shape and its paper's losses. EAGLE-3 weighs row k by 0.8**k.
DRAFTERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dspark": ({}, {}),
    "dflash": ({"markov_rank": 0, "confidence_head": False}, _TOKENS_ALONE),
    "eagle3": (
        {"method": "eagle3", "num_hidden_layers": 1},
        _TOKENS_ALONE | {"soft_labels": True, "decay_rows": 4.4814},
    ),
    "mtp": ({"method": "mtp", "num_hidden_layers": 1, "block_size": 1}, _TOKENS_ALONE),
}
SHOWN = (
    "drafter", "accepted_length", "untrained_length", "gain_frac", "gain_low_frac", "gain_high_frac",
    "dspark_gain_frac", "dspark_gain_low_frac", "dspark_gain_high_frac",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path)
    parser.add_argument("--work", type=Path, help="where the drafts are trained (default: a temporary folder)")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    meta = report_meta("baselines", seed=options.seed)
    with tempfile.TemporaryDirectory() as folder, init_distributed() as context:
        world = options.world or Path(folder, "world")
        if options.world is None:
            write_world(world, answers=32)
        course = toy_course if options.world is None else demo_course
        work = options.work or Path(folder, "work")
        rows = compared(
            world, {name: course(world, work, name, options.steps, options.seed) for name in DRAFTERS}, context
        )
    for row in rows:
        print(*(f"{key}={_shown(row[key])}" for key in SHOWN), flush=True)
    if options.json:
        write_report(options.json, meta, rows)
    return 0


def toy_course(world: Path, work: Path, name: str, steps: int, seed: int) -> TrainSettings:
    """Return the run that trains one of the drafters on the made-up target."""
    shape, losses = DRAFTERS[name]
    plain = toy_settings(world, steps)
    assert plain.draft is not None
    changes = {"evaluate_every_steps": steps, "checkpoint_every_steps": steps, "seed": seed}
    return toy_settings(world, steps, run_dir=work / name, draft=plain.draft.model_dump() | shape, **losses, **changes)


def demo_course(world: Path, work: Path, name: str, steps: int, seed: int) -> TrainSettings:
    """Return the run that trains one of the drafters in the demo's shape."""
    shape, losses = DRAFTERS[name]
    return TrainSettings(
        target=world / "target",
        run_dir=work / name,
        draft=demo_recipe.shape(DEMO_MASK_TOKEN).model_copy(update=shape),
        seed=seed,
        steps=steps,
        **demo_recipe.STEP,
        held_out_sequences=16,
        evaluate_every_steps=steps,
        **losses,
    )


def compared(world: Path, runs: dict[str, TrainSettings], context: DistributedContext) -> list[dict[str, Any]]:
    """Train and evaluate the drafters; a row has the gain over the untrained self, and DSpark's over the drafter."""
    trained, untrained = {}, {}
    for name, run in runs.items():
        target, store = read_target(run.target), FeatureStore(world / "store")
        untrained[name] = _evaluated(world, build_model(run, target, store.spec), name, run.seed)
        folder = train(run, store, context, Console(stderr=True, quiet=True), {})
        trained[name] = _evaluated(world, load_draft(folder, target), name, run.seed)
    return [_row(trained[name], untrained[name], trained["dspark"], run.seed) for name, run in runs.items()]


def _evaluated(world: Path, model: DraftModel, name: str, seed: int) -> Evaluation:
    [evaluation] = evaluate(model, FeatureStore(world / "answers"), name, [seed])
    return evaluation


def _row(trained: Evaluation, untrained: Evaluation, dspark: Evaluation, seed: int) -> dict[str, Any]:
    gain, ahead = compare(trained, untrained, seed), compare(dspark, trained, seed)
    return {
        **trained.row(),
        "untrained_length": untrained.rounds().accepted_length,
        "gain_frac": gain.gain_frac,
        "gain_low_frac": gain.low_frac,
        "gain_high_frac": gain.high_frac,
        "dspark_gain_frac": ahead.gain_frac,
        "dspark_gain_low_frac": ahead.low_frac,
        "dspark_gain_high_frac": ahead.high_frac,
    }


def _shown(value: float | str) -> str:
    return f"{value:.3f}" if isinstance(value, float) else value


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    sys.exit(main())
