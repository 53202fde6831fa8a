"""DSpark against DFlash: accepted length at temperature 1 on held-out answers, same data, steps and parameters.

Both grow from one DFlash backbone that was trained first: early on most blocks end at their first token, where a
sequential head has nothing to repair. DSpark adds its heads, DFlash what the Markov head holds as a wider MLP. One pair
of drafters a seed; a paired bootstrap over answers tells the gain. A call that was cut off goes on where it stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparktier.configs.report import report_meta, write_report
from sparktier.drafter.data.feature_store import FeatureStore
from sparktier.drafter.data.joined_stores import JoinedStores
from sparktier.drafter.data.target import Target, read_target
from sparktier.drafter.demo import recipe as demo_recipe
from sparktier.drafter.evaluation.compare import compare
from sparktier.drafter.evaluation.evaluate import evaluate
from sparktier.drafter.model.checkpoint import load_draft, save_draft
from sparktier.drafter.model.draft_model import FROZEN, DraftModel
from sparktier.drafter.training.distributed import DistributedContext, init_distributed
from sparktier.drafter.training.schedule import generator
from sparktier.drafter.training.train import train
from sparktier.drafter.training.train_settings import TrainSettings
from sparktier.serving.drafting.demo_drafter import DEMO_MASK_TOKEN

# A DFlash draft, as a shape to train afresh and as changes to a draft's config.
PLAIN_SHAPE = {"markov_rank": 0, "confidence_head": False}
PLAIN = {"markov_rank": 0, "enable_confidence_head": False, "confidence_head_with_markov": False}
# DSpark's losses and DFlash's, which knows cross entropy alone.
LOSSES: dict[str, dict[str, Any]] = {
    "dspark": {},
    "dflash": {"cross_entropy": 1.0, "total_variation": 0.0, "confidence": 0.0},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--features", type=Path, action="append", required=True, help="stores to train on")
    parser.add_argument("--answers", type=Path, action="append", required=True, help="stores to evaluate on")
    parser.add_argument("--work", type=Path, default=Path("out/dflash"))
    parser.add_argument("--start", type=Path, help="a draft whose backbone the common one starts from (default: none)")
    parser.add_argument("--common-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=400, help="of each draft after the common ones")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    meta = report_meta("dflash_comparison", seed=1)
    torch.set_flush_denormal(True)
    target = read_target(options.target)
    with init_distributed() as context:
        course = Course(options.target, target, options.features, options.work, context)
        common = course.common(options.start, options.common_steps)
        seeds = range(1, options.seeds + 1)
        pairs = {s: {name: course.branch(common, name, options.steps, s) for name in LOSSES} for s in seeds}
    rows: list[dict[str, Any]] = []
    for seed, drafts in pairs.items():
        for store in options.answers:
            rows.append(compared(drafts, target, store, seed))
            print(rows[-1], flush=True)
    if options.json:
        write_report(options.json, meta, rows)
    return 0


class Course:
    """The runs of a comparison, all on the stores `features`, in folders under `work`."""

    def __init__(
        self, folder: Path, target: Target, features: Sequence[Path], work: Path, context: DistributedContext
    ) -> None:
        self._folder, self._target, self._features, self._work = folder, target, features, work
        self._context = context

    def common(self, start: Path | None, steps: int) -> Path:
        """Train the backbone that both drafts grow from, and return its folder."""
        if start is None:
            shape = demo_recipe.shape(DEMO_MASK_TOKEN).model_copy(update=PLAIN_SHAPE)
            return self._train("common", "dflash", 1, steps, draft=shape)
        stripped = self._grown(start, PLAIN, self._work / "start", seed=1)
        return self._train("common", "dflash", 1, steps, init_from=stripped)

    def branch(self, common: Path, name: str, steps: int, seed: int) -> Path:
        """Train one draft that starts as `common`, and return its folder."""
        start = self._grown(common, self._additions()[name], self._work / f"{name}-{seed}-start", seed)
        return self._train(f"{name}-{seed}", name, seed, steps, init_from=start)

    def _additions(self) -> dict[str, dict[str, Any]]:
        dspark = demo_recipe.shape(DEMO_MASK_TOKEN)
        tables = 2 * self._target.vocab_size * dspark.markov_rank
        wider = tables // (3 * self._target.hidden_size * dspark.num_hidden_layers)
        heads = {"enable_confidence_head": True, "confidence_head_with_markov": True}
        return {
            "dspark": {"markov_rank": dspark.markov_rank, **heads},
            "dflash": {"intermediate_size": dspark.intermediate_size + wider},
        }

    def _grown(self, parent: Path, changes: dict[str, Any], folder: Path, seed: int) -> Path:
        if not folder.exists():
            model = grown(load_draft(parent, self._target), changes, seed)
            save_draft(model, folder, self._target.binding, torch.float32)
        return folder

    def _train(self, run: str, losses: str, seed: int, steps: int, **start: Any) -> Path:
        settings = TrainSettings(
            target=self._folder,
            run_dir=self._work / run,
            seed=seed,
            steps=steps,
            **demo_recipe.STEP,
            held_out_sequences=16,
            evaluate_every_steps=steps,
            checkpoint_every_steps=100,
            **LOSSES[losses],
            **start,
        )
        return train(settings, JoinedStores(self._features), self._context, Console(stderr=True), {})


def grown(parent: DraftModel, changes: dict[str, Any], seed: int) -> DraftModel:
    """Return `parent` with parts added or left out. What is added changes no logits until it is trained."""
    model = DraftModel(parent.config.model_copy(update=changes))
    model.initialise(generator(seed))
    old = dict(parent.named_parameters())
    with torch.no_grad():
        for name, own in model.named_parameters():
            if name.endswith(("mlp.down_proj.weight", "markov_w2.weight")):
                own.zero_()
            if name in old and not name.startswith(FROZEN):
                own[tuple(slice(size) for size in old[name].shape)] = old[name]
    return model


def compared(drafts: dict[str, Path], target: Target, store: Path, seed: int) -> dict[str, Any]:
    """Evaluate both on the answers of `store` and return the gain of the first."""
    found = {}
    for name, folder in drafts.items():
        model = load_draft(folder, target)
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
