"""The shipped drafter's calibration on text that neither trained nor calibrated it, at temperatures 0 and 1.

What is judged is what the engine plans by: the survival of each node of the trees that it would draft, against whether
the target's own text takes that node. Drafts are replayed as the engine drafts them (`record_answer`, which gives the
engine's accepted lengths: test_recorded_lengths.py).
"""

import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch

from sparktier.drafter.data.answered_source import Answered, answer_prompts
from sparktier.drafter.data.arrays import Floats
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.prompts import of_split
from sparktier.drafter.data.target import read_target
from sparktier.drafter.demo.location import demo_draft
from sparktier.drafter.demo.open_questions import open_questions
from sparktier.drafter.demo.prompt_making import make_prompts
from sparktier.drafter.evaluation.metrics import auc, ece_frac
from sparktier.drafter.evaluation.recording import RecordPlan, record_answer
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.kernels.expand import EdgeAcceptance, Shape
from sparktier.serving.demo_model import ensure_demo_model
from sparktier.serving.engine.speculation.edge_acceptance import read_edges

# Answers generated and drafts replayed on a CPU: minutes alone, far more beside other work.
pytestmark = [pytest.mark.prove, pytest.mark.timeout(5400)]
ANSWERS, TOKENS = 12, 80
# As configs/demo.yaml drafts trees of 12 rows on a large vocabulary.
TREE, NODES, SHORTLIST = Shape(5, 12, 4), 11, 256
LARGEST_ECE, LEAST_AUC = 0.03, 0.75


class Judged(NamedTuple):
    """Survival and outcome [n] of every node of the trees at all places of some answers."""

    survival: Floats
    came_true: Floats

    @property
    def ece_frac(self) -> float:
        return ece_frac(self.survival, self.came_true)


@pytest.fixture(scope="module")
def model() -> DraftModel:
    model = load_draft(demo_draft(), read_target(ensure_demo_model()))
    # As an engine that serves in float32.
    model.lm_head.float()
    return model


@pytest.fixture(scope="module")
def answers(model: DraftModel) -> dict[float, list[Answered]]:
    """By temperature, answers to templates of the kinds that trained and to open questions of kinds that did not."""
    target = LocalTarget(ensure_demo_model(), model.config.target_layer_ids, float32=True)
    sets = {
        "made": of_split(make_prompts(100 * ANSWERS, seed=20261128), "evaluate")[:ANSWERS],
        "open": open_questions(ANSWERS, seed=2, split="evaluate"),
    }
    return {
        temperature: [
            answer_prompts(target, prompts, target.spec(name, temperature, 3), TOKENS) for name, prompts in sets.items()
        ]
        for temperature in (0.0, 1.0)
    }


def judged(model: DraftModel, source: Answered, edges: EdgeAcceptance) -> Judged:
    plan = RecordPlan(TREE, NODES, edges, SHORTLIST)
    drafts = [record_answer(model, record, source.spec.temperature, plan) for record in source.records]
    survival = np.concatenate([draft.survival.flatten().double().numpy() for draft in drafts])
    came_true = np.concatenate([draft.came_true.flatten().double().numpy() for draft in drafts])
    return Judged(survival[survival > 0], came_true[survival > 0])


def told(what: str, found: Judged) -> str:
    sharp = auc(found.survival, found.came_true)
    means = f"predicted {found.survival.mean():.3f}, true {found.came_true.mean():.3f}"
    return f"{what}: {len(found.survival)} nodes, {means}, ECE {found.ece_frac:.4f}, AUC {sharp:.3f}"


def edges_of(temperature: float) -> EdgeAcceptance:
    """What the engine's table has for requests of this temperature."""
    one = torch.tensor([temperature])
    return read_edges(demo_draft(), device=one.device).of(one, greedy=one <= 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_survival_is_calibrated_and_sharp(
    temperature: float, model: DraftModel, answers: dict[float, list[Answered]]
) -> None:
    sets = [judged(model, source, edges_of(temperature)) for source in answers[temperature]]
    found = Judged(*(np.concatenate(column) for column in zip(*sets, strict=True)))
    for source, each in zip(answers[temperature], sets, strict=True):
        sys.stdout.write(told(f"T={temperature:g} {source.spec.dataset}", each) + "\n")
    sys.stdout.write(told(f"T={temperature:g}", found) + "\n")
    assert found.ece_frac <= LARGEST_ECE
    assert auc(found.survival, found.came_true) >= LEAST_AUC


def test_the_other_class_of_temperature_would_be_wrong(model: DraftModel, answers: dict[float, list[Answered]]) -> None:
    """Sampled tokens are accepted less often than greedy ones of the same draft probability."""
    source = answers[1.0][0]
    few = Answered(source.spec, source.records[:6])
    found = judged(model, few, edges_of(0.0))
    sys.stdout.write(told("T=1 by the greedy class", found) + "\n")
    assert found.ece_frac > LARGEST_ECE
    assert found.survival.mean() > 1.2 * found.came_true.mean()
