"""`make demo-drafter`: makes the demo model's drafter from prompts to calibrated checkpoint, stage by stage.

Every stage resumes where an earlier call stopped. The sizes of the stages are in `drafter/demo/recipe.py`.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from sparktier.configs.errors import EXIT_BAD_INPUT, SparktierError
from sparktier.configs.report import report_meta
from sparktier.drafter.calibration.calibrate import calibrate
from sparktier.drafter.data.answers import MIN_ANSWER_TOKENS
from sparktier.drafter.data.feature_store import FeatureStore, FeatureWriter, Manifest
from sparktier.drafter.data.joined_stores import JoinedStores
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.prompts import read_prompts, write_prompts
from sparktier.drafter.data.target import read_target
from sparktier.drafter.demo import recipe as demo_recipe
from sparktier.drafter.demo.recipe import Scale
from sparktier.drafter.training.distributed import DistributedContext
from sparktier.drafter.training.train import train
from sparktier.drafter.training.train_settings import DraftShape, TrainSettings
from sparktier.serving.demo_model import ensure_demo_model

FAMILIES = ("made", "self_written", "calibrate")
DEMO_LAYERS = (1, 7, 14, 20, 27)
# <jupyter_script> in the demo model's vocabulary: never written in a chat.
DEMO_MASK_TOKEN = 15
SEED = 1


def make(
    target: Path, layers: Sequence[int], draft: DraftShape, questions: Path, work: Path, scale: Scale, console: Console
) -> Path:
    """Make a drafter for `target` in `work` and return its folder, calibrations included.

    Raises:
        ArtifactError: the questions are not gsm8k's, the disk is too small, or a file in `work` is broken.
    """
    local = LocalTarget(target, layers)
    _write_prompt_files(local, questions, work, scale, console)
    stores = {name: _stores(local, work, name, scale, console) for name in FAMILIES}
    everything = [*stores["made"], *stores["self_written"]]
    trained = _train(demo_recipe.course(target, work / "run", draft, scale), everything, console)
    made = work / "draft"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(trained, made)
    calibrate(made, read_target(target), [FeatureStore(folder) for folder in stores["calibrate"]], SEED, made)
    return made


def _write_prompt_files(local: LocalTarget, questions: Path, work: Path, scale: Scale, console: Console) -> None:
    if (work / "calibrate.jsonl").exists():
        return
    texts = demo_recipe.read_questions(questions)
    made = demo_recipe.families(local, texts, scale, lambda count: console.print(f"self-written prompts: {count} more"))
    # `calibrate` is written last, so its file shows that all are there.
    for name in FAMILIES:
        write_prompts(work / f"{name}.jsonl", getattr(made, name))


def _stores(local: LocalTarget, work: Path, name: str, scale: Scale, console: Console) -> list[Path]:
    """Answer the prompts of a family, one store for each batch and, to calibrate, temperature."""
    encoded = demo_recipe.batches(local, read_prompts(work / f"{name}.jsonl"))
    folders = []
    for number, batch in enumerate(encoded):
        sampled = number % demo_recipe.SAMPLED_EVERY == demo_recipe.SAMPLED_EVERY - 1
        temperatures = (0.0, 1.0) if name == "calibrate" else (1.0 if sampled else 0.0,)
        for temperature in temperatures:
            folder = work / "features" / f"{name}-{number:03d}-T{temperature:g}"
            if not folder.exists():
                console.print(f"answers: {folder.name} ({len(batch)} prompts)")
                _answer(local, batch, folder, temperature, SEED + number, scale.answer_tokens)
            folders.append(folder)
    return folders


def _answer(
    local: LocalTarget, batch: Sequence[Sequence[int]], folder: Path, temperature: float, seed: int, tokens: int
) -> None:
    written = local.write(batch, tokens, temperature, torch.Generator().manual_seed(seed))
    records = [record for record in written.records if int(record.answer_mask.sum()) >= MIN_ANSWER_TOKENS]
    manifest = Manifest(
        spec=local.spec(folder.name, temperature, seed),
        lengths_tokens=tuple(len(record.token_ids) for record in records),
        sequences_per_shard=demo_recipe.BATCH,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    writer = FeatureWriter(part, manifest, shutil.disk_usage(folder.parent).free)
    for record in records:
        writer.append(record)
    part.rename(folder)


def _train(settings: TrainSettings, stores: Sequence[Path], console: Console) -> Path:
    context = DistributedContext(0, 1, torch.device("cpu"))
    facts = report_meta("demo-drafter", settings.seed).model_dump(mode="json")
    return train(settings, JoinedStores(stores), context, console, facts)


def main() -> int:
    """Read the command line and make the drafter."""
    parser = argparse.ArgumentParser(prog="make demo-drafter", description="Make the demo model's drafter anew.")
    parser.add_argument("--questions", type=Path, required=True, help="gsm8k's train.jsonl, see docs/drafter.md")
    parser.add_argument("--work", type=Path, default=Path("out/demo-drafter"), help="folder for all stages (5 GB)")
    options = parser.parse_args()
    console = Console()
    # Adam's moments run into denormals, which a CPU computes with many times slower.
    torch.set_flush_denormal(True)
    try:
        target = ensure_demo_model(progress=console.print)
        draft = demo_recipe.shape(DEMO_MASK_TOKEN)
        made = make(target, DEMO_LAYERS, draft, options.questions, options.work, Scale(), console)
    except SparktierError as error:
        console.print(f"demo-drafter: {error}", style="red", soft_wrap=True)
        return EXIT_BAD_INPUT
    console.print(f"draft {made}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
