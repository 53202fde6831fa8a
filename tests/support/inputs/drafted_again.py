"""Stored answers, of which only the last tokens are asked for, and what the drafter drafts at them in float32."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sparktier.cluster.simulator.answers import Answer, Texts, TokenIds
from sparktier.configs.loading.loader import load_settings
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.evaluation.recording import record_answer
from sparktier.serving.bench.tiers.record_command import record_plans
from sparktier.serving.drafting.sources import load_drafter


class LastTokens:
    """The last `places` of the answers of `texts`; what comes before them belongs to the prompt."""

    def __init__(self, texts: Texts, places: int) -> None:
        self._texts, self._places = texts, places

    def answer(self, rng: np.random.Generator) -> Answer:
        """Draw an answer."""
        whole = self._texts.answer(rng)
        return whole.last(min(self._places, whole.tokens - 1))


class DraftedAgain:
    """The answers of `texts` with drafts as `sparktier bench record` makes them, from a pass over the stored tokens."""

    def __init__(self, texts: Texts, deployment: Path, drafts: str) -> None:
        settings = load_settings(deployment, {"speculation.method": "tree"})
        self._texts, drafter = texts, load_drafter(settings, None)
        self._model = drafter.model
        self._model.lm_head.float()
        self._plan = record_plans(settings, drafter, 0.0)[drafts]
        self._target = LocalTarget(drafter.target_folder, self._model.config.target_layer_ids, float32=True)
        self._drafted: dict[TokenIds, Answer] = {}

    def answer(self, rng: np.random.Generator) -> Answer:
        """Draw an answer."""
        stored = self._texts.answer(rng)
        assert stored.ids is not None
        if stored.ids not in self._drafted:
            self._drafted[stored.ids] = self._again(stored, stored.ids)
        return self._drafted[stored.ids]

    def _again(self, stored: Answer, ids: TokenIds) -> Answer:
        tokens = ids.prompt + ids.answer
        (read,) = self._target.write([tokens], 1, 0.0, torch.Generator()).records
        record = FeatureRecord(
            token_ids=read.token_ids[: len(tokens)],
            answer_mask=torch.arange(len(tokens)) >= len(ids.prompt),
            features=read.features[: len(tokens)],
            last_hidden=read.last_hidden[: len(tokens)],
        )
        drafts = record_answer(self._model, record, 0.0, self._plan)
        came_true = drafts.came_true.numpy().astype(np.int64)
        accepted = np.concatenate((np.zeros((len(came_true), 1), dtype=np.int64), came_true.cumsum(axis=1)), axis=1)
        assert len(accepted) == len(stored.accepted)
        return replace(stored, survival=drafts.survival.numpy().astype(np.float64), accepted=accepted)
