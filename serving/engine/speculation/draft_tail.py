"""What follows the draft's layers, in the same CUDA graph: from hidden states to the rows that the target verifies.

A graph is captured for each kind of draft, as SGLang captures variants of attention.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from sglang.srt.model_executor.runner_utils.capture_mode import get_capture_attention_variant
from torch import Tensor

from sparktier.kernels.captured import StagedInputs, StaticOutputs, staged_inputs
from sparktier.kernels.draft_tree import DraftTree
from sparktier.serving.engine.speculation.row_budget import StepBudget

# The kinds of draft, and where SGLang's input of a draft's block says which of them it is.
CHAIN_TAIL, TREE_TAIL = "sparktier_draft_chain", "sparktier_draft_tree"
VARIANT = "sparktier_tail"


class Proposed(NamedTuple):
    """A step's tree as a graph leaves it. words: `ancestor_words` of it; survival [batch, nodes]: falling.

    Of a chain that isn't paced both have no columns.
    """

    tree: DraftTree
    words: Tensor
    survival: Tensor

    def narrowed(self, width: int) -> "Proposed":
        """Return the first `width` rows, which are all that a shorter rung has."""
        tokens, parents, depths = (part[:, :width] for part in self.tree[:3])
        tree = DraftTree(tokens, parents, depths, self.tree.row_counts)
        return Proposed(tree, self.words[:, :width], self.survival[:, : width - 1])


Propose = Callable[[Tensor, Tensor, StagedInputs], Proposed]
"""(hidden [batch * query rows, hidden], anchors [batch], what was staged for these) -> the rows to verify."""


class DraftTail:
    """Proposers by kind, with the buffers that they read and write; SGLang calls it as it does its own sampler."""

    def __init__(
        self, proposers: Mapping[str, Propose], *, most_requests: int, query_rows: int, device: torch.device
    ) -> None:
        self._proposers, self._query_rows = proposers, query_rows
        self._inputs = staged_inputs(most_requests, device=device)
        self._outputs = StaticOutputs(most_requests)

    def __call__(self, hidden: Tensor, input_ids: Tensor) -> None:
        """Propose from the draft's `hidden` states; input_ids [batch * query rows] open with each request's anchor."""
        kind = get_capture_attention_variant() or CHAIN_TAIL
        anchors = input_ids.view(-1, self._query_rows)[:, 0]
        tree, words, survival = self._proposers[kind](hidden, anchors, self._inputs.first(len(anchors)))
        self._outputs.write(kind, (*tree, words, survival))

    def stage_sampling_params(self, *, bs: int, sampling_info: Any) -> None:
        """Take in how the `bs` requests sample; SGLang calls it before the replay that follows a change."""
        self._inputs.stage_sampling(sampling_info.temperatures.view(-1)[:bs], sampling_info.top_ks.view(-1)[:bs])

    def stage(self, budget: StepBudget, block: Any) -> None:
        """Take in the bounds of a step, and have SGLang replay the graph of its kind for the draft's `block`."""
        setattr(block, VARIANT, _kind(budget))
        if len(budget.row_counts) <= self._outputs.most:
            self._inputs.stage_limits(torch.stack((budget.row_counts, budget.useful), dim=1))

    def stage_requests(self, slots: Tensor, seq_lens: Tensor, *, no_slot: int) -> None:
        """Take in where a lookup has the tokens of each request, and how many; both [batch]."""
        if len(slots) <= self._outputs.most:
            self._inputs.stage_requests(slots, seq_lens, no_slot=no_slot)

    def proposed(self, budget: StepBudget) -> Proposed:
        """Return what the replay for `budget` has left, which the next one overwrites."""
        tokens, parents, depths, counts, words, survival = self._outputs.read(_kind(budget), len(budget.row_counts))
        return Proposed(DraftTree(tokens, parents, depths, counts), words, survival).narrowed(budget.width)


def _kind(budget: StepBudget) -> str:
    return TREE_TAIL if budget.branching else CHAIN_TAIL
