"""Whether two greedy outputs are the same under the one tie rule: a first divergence is allowed only where a float64
replay shows that the choice was a tie.

The replay is transformers' own model, which shares no code with any engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

TIE_GAP = 1e-4


@dataclass(frozen=True)
class Tie:
    """A divergence that the rule allows: where, and how close the logits and the closest router choice were."""

    prompt: int
    position: int
    tokens: tuple[int, int]
    logit_gap: float
    router_gap: float


def assert_same_greedy(
    reference: Sequence[Sequence[int]],
    other: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    model: Path,
    *,
    tie_gap: float = TIE_GAP,
) -> list[Tie]:
    """Return the ties at which `other` first diverges from `reference`, one at most for each of `prompts`.

    All are lists of token ids, `model` the directory of the checkpoint both were made with. Raises AssertionError,
    naming every divergence that is no tie, when there is one.
    """
    assert len(reference) == len(other) == len(prompts) > 0
    divergences = {
        index: place
        for index, pair in enumerate(zip(reference, other, strict=True))
        if (place := first_divergence(*pair)) is not None
    }
    if not divergences:
        return []
    replay = _Replay(model)
    ties = [
        replay.judge(index, place, reference[index], other[index], prompts[index])
        for index, place in divergences.items()
    ]
    wrong = [tie for tie in ties if not _is_tie(tie, tie_gap)]
    assert not wrong, f"{len(wrong)} of {len(prompts)} outputs diverge where there is no tie: {wrong}"
    return ties


def first_divergence(reference: Sequence[int], other: Sequence[int]) -> int | None:
    """Return the first index at which the two differ, one that ended early included, or None."""
    for index in range(max(len(reference), len(other))):
        if list(reference[index : index + 1]) != list(other[index : index + 1]):
            return index
    return None


def float64_model(model: Path) -> Any:
    """Return transformers' model of the checkpoint at `model` in float64, each expert computed by itself."""
    return AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def _is_tie(tie: Tie, gap: float) -> bool:
    return min(tie.logit_gap, tie.router_gap) < gap


class _Replay:
    """The checkpoint in float64."""

    def __init__(self, model: Path) -> None:
        self._model = float64_model(model)

    @torch.no_grad()
    def judge(
        self, index: int, place: int, reference: Sequence[int], other: Sequence[int], prompt: Sequence[int]
    ) -> Tie:
        """Return how close the choice was at `place`, where `reference` and `other` part after a common prefix."""
        context = torch.tensor([[*prompt, *reference[:place]]])
        output = self._model(context, output_router_logits=True)
        logits = output.logits[0, -1]
        tokens = tuple(output[place] if place < len(output) else -1 for output in (reference, other))
        # Between the two tokens chosen and the best: a gap between other tokens excuses nothing.
        chosen = [float(logits[token]) if token >= 0 else -torch.inf for token in tokens]
        logit_gap = float(logits.max()) - min(chosen)
        return Tie(index, place, (tokens[0], tokens[1]), logit_gap, self._router_gap(output.router_logits))

    def _router_gap(self, router_logits: Sequence[torch.Tensor]) -> float:
        """Return the least gap, over layers and positions, between the last expert taken and the first left out."""
        taken = int(self._model.config.num_experts_per_tok)
        gaps = [layer.topk(taken + 1, dim=-1).values for layer in router_logits]
        return min((float((gap[:, -2] - gap[:, -1]).min()) for gap in gaps), default=torch.inf)
