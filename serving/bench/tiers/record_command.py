"""Runs `sparktier bench record`: has a model answer prompts and writes what its drafter drafts at every anchor."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from sparktier.cluster.simulator.answers import TokenIds
from sparktier.cluster.simulator.recorded_text import Drafts, Recorded, write_recorded
from sparktier.configs.settings.settings import Settings
from sparktier.drafter.data.features import FeatureSpec
from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.evaluation.recording import RecordPlan, record_answer
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.kernels.expand import EdgeAcceptance, Shape
from sparktier.serving.drafting.progress_bar import progress_bar
from sparktier.serving.drafting.sources import AnswerSelection, LoadedDrafter, load_drafter, sources
from sparktier.serving.engine.speculation.edge_acceptance import read_edges

# As the engine drafts what it paces, chains too, on large vocabularies.
_SHORTLIST_TOKENS = 256


def run(settings: Settings, *, draft: Path | None, selection: AnswerSelection, out: Path) -> int:
    """Record chains of the drafter's block and trees of the settings' rows; print where the file is.

    Raises:
        ConfigError, ArtifactError: an input is missing, corrupt, or belongs to another drafter or target.
    """
    console = Console(stderr=True)
    drafter = load_drafter(settings, draft)
    # As in an engine that serves in float32: by a bfloat16 table, faster on some CPUs, survivals are off by 1%.
    drafter.model.lm_head.float()
    answers: list[Recorded] = []
    datasets = []
    for source in sources(drafter, selection, console, float32=True):
        datasets.append(f"{source.spec.dataset} ({len(source.lengths_tokens)}, T={source.spec.temperature:g})")
        plans = record_plans(settings, drafter, source.spec.temperature)
        with progress_bar(f"{source.spec.dataset}: anchors", len(source.lengths_tokens), console) as (bar, task):
            for record in source.read(range(len(source.lengths_tokens))):
                answers.append(recorded(drafter.model, record, source.spec, plans))
                bar.advance(task)
    write_recorded(out, answers, source=f"{drafter.target_folder.name}, {drafter.folder.name}: {', '.join(datasets)}")
    console.print(f"recorded {out}", soft_wrap=True)
    return 0


def record_plans(settings: Settings, drafter: LoadedDrafter, temperature: float) -> dict[str, RecordPlan]:
    """Return the ways of drafting to record, by name: `chain5` is a chain of 5 tokens, `tree12` a tree of 12 rows."""
    gamma, speculation = drafter.model.config.block_size, settings.speculation
    edges = _edges(drafter.folder, temperature)
    shape = Shape(gamma, speculation.tree_parents, speculation.tree_children)
    return {
        f"chain{gamma}": RecordPlan(Shape(gamma, 1, 1), gamma, edges, _SHORTLIST_TOKENS),
        f"tree{speculation.tree_rows}": RecordPlan(shape, speculation.tree_rows - 1, edges, _SHORTLIST_TOKENS),
    }


def recorded(model: DraftModel, record: FeatureRecord, spec: FeatureSpec, plans: Mapping[str, RecordPlan]) -> Recorded:
    """Return one answer with what is drafted at each of its places under every plan."""
    ids = TokenIds(*(tuple(record.token_ids[part].tolist()) for part in (~record.answer_mask, record.answer_mask)))
    drafts = {name: record_answer(model, record, spec.temperature, plan) for name, plan in plans.items()}
    return Recorded(
        ids,
        spec.dataset,
        {
            name: Drafts(anchors.survival.numpy().astype(np.float64), anchors.came_true.numpy())
            for name, anchors in drafts.items()
        },
    )


def _edges(draft: Path, temperature: float) -> EdgeAcceptance:
    one = torch.tensor([temperature])
    return read_edges(draft, device=one.device).of(one, greedy=one <= 0)
