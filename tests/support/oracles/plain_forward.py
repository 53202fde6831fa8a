"""What a trainer's records must hold, by transformers' own model of the checkpoint: no engine, no chunks, no shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-3


class PlainForward:
    """The checkpoint in `folder`, in float64: the demo model's features reach 20,000, where float32 errs itself."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
        ).eval()

    @torch.no_grad()
    def __call__(self, token_ids: Sequence[int], layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the outputs of `layers` side by side [n, K * hidden], and the last hidden state [n, hidden]."""
        output = self._model.model(torch.tensor([list(token_ids)]), output_hidden_states=True)
        # The first entry is the embedding, so the output of layer i is entry i + 1.
        outputs = [output.hidden_states[layer + 1][0] for layer in layers]
        return torch.cat(outputs, dim=1), output.last_hidden_state[0]


def assert_same_features(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    """Fail unless features and last hidden states agree to TOLERANCE."""
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=TOLERANCE, atol=TOLERANCE)
