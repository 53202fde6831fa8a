"""`make demo-drafter`: makes the demo model's drafter from prompts to calibrated checkpoint, stage by stage.

Every stage resumes where an earlier call stopped. The sizes of the stages, and their shares of `MINUTES`, are in
`drafter/demo/recipe.py`.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from sparktier.configs.errors import EXIT_BAD_INPUT, ConfigError, Problem, SparktierError
from sparktier.configs.files import read_json, write_json
from sparktier.configs.report import report_meta, write_report
from sparktier.drafter.calibration.calibrate import calibrate
from sparktier.drafter.data.answer_stores import AnswerPlan, answer_stores
from sparktier.drafter.data.feature_store import FeatureStore
from sparktier.drafter.data.feature_stream import prefetched
from sparktier.drafter.data.joined_stores import JoinedStores
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.prompts import read_prompts, write_prompts
from sparktier.drafter.data.target import read_target
from sparktier.drafter.demo import recipe as demo_recipe
from sparktier.drafter.demo.recipe import Scale
from sparktier.drafter.training.distributed import DistributedContext
from sparktier.drafter.training.train import seconds_per_step, train
from sparktier.drafter.training.train_settings import DraftShape, TrainSettings
from sparktier.serving.demo_model import ensure_demo_model
from sparktier.serving.drafting.course import judged_rows, tell_row

TRAINING = ("made", "self_written")
# Answered once at each temperature, to calibrate and to judge both classes.
JUDGING = ("calibrate", "evaluate")
FAMILIES = (*TRAINING, *JUDGING)
DEMO_LAYERS = (1, 7, 14, 20, 27)
# <jupyter_script> in the demo model's vocabulary: never written in a chat.
DEMO_MASK_TOKEN = 15
SEED = 1
# Fewer teach nothing, however little time is left.
LEAST_STEPS = 24


class Course:
    """The stages for one target in the folder `work`, on `device`, begun now."""

    def __init__(self, target: Path, work: Path, scale: Scale, device: torch.device, console: Console) -> None:
        self.target, self.work, self.scale, self.device, self.console = target, work, scale, device, console
        self._started_s = time.monotonic()

    def until_s(self, stage: str) -> float:
        """Return the moment (`time.monotonic`) at which the time of a stage is up."""
        if self.scale.minutes is None:
            return float("inf")
        return self._started_s + 60.0 * self.scale.minutes * demo_recipe.DEADLINES[stage]

    def make(self, layers: Sequence[int], draft: DraftShape, questions: Path | None) -> Path:
        """Make the drafter and return its folder, calibrations included.

        Raises:
            ArtifactError: the questions are not gsm8k's, the disk is too small, or a file in `work` is broken.
        """
        local = LocalTarget(self.target, layers, device=self.device)
        self._write_prompt_files(local, questions)
        judged = {
            (name, temperature): self._answers(local, name, f"{name}-T{temperature:g}", (temperature,))
            for name in JUDGING
            for temperature in (0.0, 1.0)
        }
        learned = [
            store for name in TRAINING for store in self._answers(local, name, name, demo_recipe.TRAINING_TEMPERATURES)
        ]
        trained = self._train(learned, draft)
        made = self.work / "draft"
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(trained, made)
        self.console.print("calibration")
        fitted_on = [
            FeatureStore(store) for (name, _), stores in judged.items() if name == "calibrate" for store in stores
        ]
        calibrate(made, read_target(self.target), fitted_on, SEED, made, self.device)
        self._evaluate(made, [store for (name, _), stores in judged.items() if name == "evaluate" for store in stores])
        return made

    def _write_prompt_files(self, local: LocalTarget, questions: Path | None) -> None:
        if all((self.work / f"{name}.jsonl").exists() for name in FAMILIES):
            return
        texts = [] if questions is None else demo_recipe.read_questions(questions)
        until_s = self.until_s("prompts")
        made = demo_recipe.families(
            local,
            texts,
            self.scale,
            lambda count: self.console.print(f"self-written prompts: {count} more"),
            lambda: time.monotonic() > until_s,
        )
        for name in FAMILIES:
            write_prompts(self.work / f"{name}.jsonl", getattr(made, name))

    def _answers(self, local: LocalTarget, name: str, stage: str, temperatures: Sequence[float]) -> list[Path]:
        prompts = read_prompts(self.work / f"{name}.jsonl")
        if not prompts:
            return []
        plan = AnswerPlan(
            tokens=self.scale.answer_tokens,
            batch=self.scale.batch,
            seed=SEED,
            longest_prompt_tokens=demo_recipe.LONGEST_PROMPT_TOKENS,
            until_s=self.until_s(stage),
        )
        return answer_stores(local, prompts, self.work / "features", stage, temperatures, plan, self._tell)

    def _tell(self, done: object) -> None:
        self.console.print(f"answers: {done}", highlight=False, soft_wrap=True)

    def _train(self, stores: Sequence[Path], draft: DraftShape) -> Path:
        source, context = JoinedStores(stores), DistributedContext(0, 1, self.device)
        held_out = min(self.scale.held_out, len(source.lengths_tokens) // 4)
        scale = replace(self.scale, held_out=max(1, held_out))
        note = self.work / "steps.json"
        if note.exists():
            scale = replace(scale, steps=int(read_json(note, "the steps of a run")["steps"]))
        elif scale.minutes is not None:
            each_s = seconds_per_step(self._settings(draft, scale), source, context)
            fit = int((self.until_s("train") - time.monotonic()) / each_s)
            scale = replace(scale, steps=min(scale.steps, max(LEAST_STEPS, fit)))
            self.console.print(f"training: {scale.steps} steps, the first of {each_s:.2f} s", highlight=False)
        write_json(note, {"steps": scale.steps})
        facts = report_meta("demo-drafter", SEED).model_dump(mode="json")
        return train(self._settings(draft, scale), prefetched(source), context, self.console, facts)

    def _settings(self, draft: DraftShape, scale: Scale) -> TrainSettings:
        return demo_recipe.course(self.target, self.work / "run", draft, scale)

    def _evaluate(self, draft: Path, stores: Sequence[Path]) -> None:
        meta = report_meta("demo-drafter", SEED)
        rows = judged_rows(draft, self.target, stores, SEED, self.device)
        for row in rows:
            tell_row(self.console, row)
        write_report(self.work / "evaluation.json", meta, rows)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        cure = "Leave it out to compute on the CPU."
        raise ConfigError([Problem("DEVICE", "torch must see a GPU", "none", cure)])
    return torch.device(name)


def main() -> int:
    """Read the command line and make the drafter."""
    parser = argparse.ArgumentParser(prog="make demo-drafter", description="Make the demo model's drafter anew.")
    parser.add_argument("--questions", type=Path, help="gsm8k's train.jsonl to train on too, see docs/drafter.md")
    parser.add_argument(
        "--minutes", type=float, help="time for all stages (default: as long as the whole recipe takes)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where all stages compute")
    parser.add_argument("--work", type=Path, help="folder for all stages (whole recipe: 5 GB)")
    options = parser.parse_args()
    console = Console()
    try:
        device = _device(options.device)
        target = ensure_demo_model(progress=console.print)
        scale = Scale()
        work = Path("out/demo-drafter")
        if options.minutes is not None:
            scale = Scale.within(options.minutes, on_gpu=device.type == "cuda")
            work = work.with_name(f"demo-drafter-{options.device}-{options.minutes:g}min")
        course = Course(target, options.work or work, scale, device, console)
        made = course.make(DEMO_LAYERS, demo_recipe.shape(DEMO_MASK_TOKEN), options.questions)
    except SparktierError as error:
        console.print(f"demo-drafter: {error}", style="red", soft_wrap=True)
        return EXIT_BAD_INPUT
    console.print(f"draft {made}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    # Adam's moments run into denormals, which a CPU computes with many times slower. It holds for a whole process.
    torch.set_flush_denormal(True)
    sys.exit(main())
