"""Recorded text of the demo model: from it come exactly the accepted lengths of `tests/bench/tree_length.py`."""

import argparse
from collections.abc import Sequence

import pytest
from bench.tree_length import measure

from sparktier.configs.loading.loader import settings_from
from sparktier.drafter.data.answered_source import answer_prompts
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.prompts import of_split
from sparktier.drafter.demo.prompt_making import make_prompts
from sparktier.drafter.evaluation.recording import AnchorRecord, record_answer
from sparktier.serving.bench.tiers.record_command import record_plans
from sparktier.serving.drafting.sources import load_drafter

ANSWERS, LEAST_ANSWERS, TOKENS = 140, 130, 48


def accepted_length(answers: Sequence[AnchorRecord]) -> float:
    """Mean tokens of a round that verifies every node, from the first anchor to the end of each answer."""
    rounds = tokens = 0
    for answer in answers:
        accepted, place = answer.came_true.sum(dim=1).tolist(), 0
        while place < len(accepted):
            rounds += 1
            place += accepted[place] + 1
        tokens += len(accepted)
    return tokens / rounds


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_recorded_text_has_the_accepted_lengths_of_the_replay() -> None:
    settings = settings_from({"model": {"path": "demo"}, "speculation": {"method": "tree", "draft_path": "demo"}})
    drafter = load_drafter(settings, None)
    prompts = of_split(make_prompts(20 * ANSWERS, seed=20261128), "evaluate")[:ANSWERS]
    target = LocalTarget(drafter.target_folder, drafter.model.config.target_layer_ids, float32=True)
    source = answer_prompts(target, prompts, target.spec("made", 0.0, 1), TOKENS)
    assert len(source.records) >= LEAST_ANSWERS
    plans = record_plans(settings, drafter, 0.0)
    drafts = {
        name: [record_answer(drafter.model, each, 0.0, plan, to_the_end=True) for each in source.records]
        for name, plan in plans.items()
    }
    options = argparse.Namespace(draft=drafter.folder, rows=[12], parents=4, children=4, shortlist=256, seed=0)
    (row,) = measure(drafter.model, source, options)
    found = {name: accepted_length(answers) for name, answers in drafts.items()}
    assert found == {"chain5": row["paced_chain_length"], "tree12": row["tree_length"]}
