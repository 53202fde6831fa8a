"""`sparktier bench record`: survivals as in an engine that serves in float32, whatever the tables are in."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from sparktier.cluster.simulator.recorded_text import read_recorded
from sparktier.configs.loading.loader import settings_from
from sparktier.drafter.data.answered_source import Answered
from sparktier.drafter.data.features import FeatureSpec
from sparktier.drafter.evaluation.recording import record_answer
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.serving.bench.tiers import record_command
from sparktier.serving.drafting.sources import AnswerSelection, LoadedDrafter
from support.drafts import loud_model, random_record, tiny_config

CONFIG = tiny_config()


def drafter(tmp_path: Path) -> LoadedDrafter:
    model: DraftModel = loud_model(CONFIG, 1)
    model.lm_head.to(torch.bfloat16)
    return cast(LoadedDrafter, SimpleNamespace(folder=tmp_path, target_folder=tmp_path, model=model))


def test_survivals_are_of_a_float32_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, loaded, out = random_record(CONFIG, 40, 8, 1), drafter(tmp_path), tmp_path / "answers.npz"
    spec = FeatureSpec(
        target_layer_ids=CONFIG.target_layer_ids,
        hidden_size=CONFIG.hidden_size,
        dtype="float32",
        temperature=0.0,
        seed=1,
        dataset="made",
        target_sha256="",
        tokenizer_sha256="",
    )
    monkeypatch.setattr(record_command, "load_drafter", lambda settings, draft: loaded)
    monkeypatch.setattr(record_command, "sources", lambda *args, **kwargs: [Answered(spec, [record])])
    settings = settings_from({"model": {"path": "demo"}, "speculation": {"method": "tree", "draft_path": "demo"}})
    selection = AnswerSelection([], [], None, [0.0], 32, 1)
    assert record_command.run(settings, draft=None, selection=selection, out=out) == 0

    exact = drafter(tmp_path)
    rounded = record_command.record_plans(settings, exact, 0.0)["chain5"]
    off = record_answer(exact.model, record, 0.0, rounded).survival.numpy()
    exact.model.lm_head.float()
    expected = record_answer(exact.model, record, 0.0, rounded).survival.numpy()
    (answer,) = read_recorded(out, "chain5").answers
    assert np.array_equal(answer.survival, expected.astype(np.float64))
    assert not np.allclose(off, expected, rtol=1e-3)
