"""Texts by the DSpark paper's figures: acceptance by position (figure 2) and how far survivals spread (figure 6).

The chance of a drafted token is the logistic of its position's mean plus the difficulty of its request and of its
place. Means are solved for, so that a class has exactly its published acceptance. What the paper doesn't say, the split
of the spread between requests and places and how long a stretch lasts, are parameters of the file.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparktier.cluster.arrays import Floats
from sparktier.cluster.simulator.answers import Answer, chain_answer
from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import read_json

PUBLISHED = Path(__file__).parent / "published_text.json"
REPORTED = Path(__file__).parent / "reported_text.json"

Frac = Annotated[float, Field(ge=0, le=1)]
_SAMPLES = 8192
# What lies further back is forgotten.
_MEMORY_TOKENS = 32


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TextClass(_Part):
    """One class of text."""

    share_frac: Frac
    """Of all requests."""
    conditional_acceptance: tuple[Annotated[float, Field(gt=0, lt=1)], ...]
    """By position in the block: a token's acceptance, once all before it are accepted."""


class Lengths(_Part):
    """Tokens of an answer: a lognormal, cut off at both ends."""

    median_tokens: float
    log_sd: float
    least_tokens: Annotated[int, Field(ge=2)]
    most_tokens: int


class TextFigures(_Part):
    """The file of published figures and of the parameters that they leave open."""

    source: str
    classes: Mapping[str, TextClass]
    survival_histograms: Mapping[int, tuple[float, ...]] = {}
    """Figure 6, chat: by position, the share of drafts in each of 20 equal bins of predicted survival."""
    reliability: Mapping[int, tuple[tuple[float, float], ...]] = {}
    """Figure 6: by position, points (predicted survival, accepted share) before calibration."""
    logit_sd: float
    """Spread of the log-odds of one token's acceptance, fitted to the histograms."""
    request_share_frac: Frac
    """Of that variance, what a whole request has in common: its difficulty."""
    persistence_frac: Frac
    """Correlation of what is left from one token to the next."""
    lengths: Lengths


class PublishedTexts:
    """Draws answers by `figures`, drafted by chains of `nodes` tokens."""

    def __init__(self, figures: TextFigures, *, nodes: int) -> None:
        self._figures, self._nodes = figures, nodes
        self._means = {name: self._solved(name) for name in figures.classes}

    def answer(self, rng: np.random.Generator, tokens: int | None = None) -> Answer:
        """Draw an answer: its class, length (or `tokens`, >= 2) and difficulty, and the luck of each of its tokens."""
        names = list(self._figures.classes)
        kind = names[rng.choice(len(names), p=[self._figures.classes[name].share_frac for name in names])]
        lengths = self._figures.lengths
        drawn = lengths.median_tokens * np.exp(lengths.log_sd * rng.standard_normal())
        if tokens is None:
            tokens = int(np.clip(drawn, lengths.least_tokens, lengths.most_tokens))
        spread = self._spread(rng, requests=1, tokens=tokens + self._nodes)[0]
        coins = rng.random(tokens + self._nodes)
        # Token t of the text, drafted from the anchor before it or from one further back.
        at = np.arange(tokens - 1)[:, None] + np.arange(self._nodes)
        chances = _logistic(self._means[kind] + spread[at])
        accepted = np.cumprod(coins[at] < chances, axis=1).sum(axis=1)
        survival = np.cumprod(chances, axis=1, dtype=np.float64)
        return chain_answer(survival, accepted, kind=kind)

    def _spread(self, rng: np.random.Generator, *, requests: int, tokens: int) -> Floats:
        """[requests, tokens] what each token's log-odds differ from its position's mean."""
        figures = self._figures
        weights = figures.persistence_frac ** np.arange(_MEMORY_TOKENS)
        weights /= np.sqrt((weights**2).sum())
        fresh = rng.standard_normal((requests, tokens + _MEMORY_TOKENS))
        local = np.array([np.convolve(each[1:], weights, mode="valid") for each in fresh])
        share = figures.request_share_frac
        spread: Floats = figures.logit_sd * (np.sqrt(share) * fresh[:, :1] + np.sqrt(1.0 - share) * local)
        return spread

    def _solved(self, name: str) -> Floats:
        """[nodes] the means that give class `name` its published acceptance."""
        spread = self._spread(np.random.default_rng(0), requests=_SAMPLES, tokens=self._nodes)
        reached, means = np.ones(_SAMPLES), []
        for position, wanted in enumerate(self._figures.classes[name].conditional_acceptance[: self._nodes]):
            low, high = -20.0, 20.0
            for _ in range(50):
                middle = (low + high) / 2
                found = (reached * _logistic(middle + spread[:, position])).sum() / reached.sum()
                low, high = (middle, high) if found < wanted else (low, middle)
            reached = reached * _logistic(middle + spread[:, position])
            means.append(middle)
        return np.array(means)


@lru_cache(maxsize=2)
def published_figures(path: Path = PUBLISHED) -> TextFigures:
    """Read committed figures: the paper's, or `REPORTED`, what others measured of DeepSeek-V4-Flash's drafter.

    Raises:
        ArtifactError: they are damaged.
    """
    try:
        return TextFigures.model_validate(read_json(path, "the text figures"))
    except ValidationError as error:
        raise ArtifactError(f"{path}: {error.errors()[0]['msg']}. Restore the file.") from None


def _logistic(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-x)), dtype=np.float64)
