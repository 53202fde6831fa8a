"""Scripted tokens and acceptance for models with random weights: which token follows, and where a draft is right.

A random draft is never accepted, and proposes nearly the same tokens for everybody, so that few experts are read. Here
the target's and the draft's own logits are overruled at a token or four of each row, by tables of positions; layers,
graphs, accept rules and moves of KV stay as they are. Nothing is staged for a step, so captured graphs follow too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Scores of a draft's guesses beside the others' few units: softmax gives them 0.64, 0.24, 0.09 and 0.03.
GUESS_SCORES = (57.0, 56.0, 55.0, 54.0)
TARGET_SCORE = 60.0
_MIX = 7919


class Curve(NamedTuple):
    """How often a level is right, given that the one above it was. first [levels]; others: how often the second to
    fourth guess is right where those before were not."""

    first: Sequence[float]
    others: Sequence[float] = (0.0, 0.0, 0.0)

    def right_at(self) -> list[list[float]]:
        """[levels][guesses]: the chance that one of the first so many guesses is right."""
        table = []
        for chance in self.first:
            reached = [chance]
            for other in self.others:
                reached.append(reached[-1] + (1.0 - reached[-1]) * other)
            table.append(reached)
        return table

    @property
    def chain_length(self) -> float:
        """Tokens a step of a chain of all levels, the target's own among them."""
        length, reached = 1.0, 1.0
        for chance in self.first:
            reached *= chance
            length += reached
        return length


# GSM8K, temperature 0, Qwen3-8B with DSpark's block of 7, as published: 94.7, 89.0, 83.2, 77.8, 72.8% ... of the blocks
# reach each level. What second guesses add is assumed.
GSM8K = Curve((0.947, 0.940, 0.935, 0.935, 0.936, 0.931, 0.926), others=(0.3, 0.15, 0.1))


class Script:
    """What follows each token, by its position, and what a draft makes of it; tables on `device` for so many positions.

    Answers differ by an offset, which any of their tokens tells with its position: token = offset + table[position].
    """

    def __init__(self, curve: Curve, *, vocab: int, positions: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocab, self.positions = vocab, positions
        self._tokens = torch.randint(vocab, (positions,), generator=generator).to(device)
        self._chances = torch.rand(positions, generator=generator).to(device)
        self._right_at = torch.tensor(curve.right_at()).to(device)
        self._scores = torch.tensor(GUESS_SCORES).to(device)
        self._wrong = ((torch.arange(len(GUESS_SCORES)) + 1) * max(1, vocab // 7)).to(device)

    def next_tokens(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Return what follows `tokens` [n] at `places` [n], their positions."""
        return self._at(self._offsets(tokens, places), places + 1)

    def guesses(self, anchors: Tensor, places: Tensor, levels: int) -> Tensor:
        """Return a draft's guesses [n, levels, 4], likeliest first, from `anchors` [n] at `places` [n]."""
        offsets = self._offsets(anchors, places).unsqueeze(1)
        ahead = places.unsqueeze(1) + torch.arange(1, levels + 1, device=places.device)
        right = self._at(offsets, ahead).unsqueeze(2)
        chance = self._chances[(ahead + offsets * _MIX) % self.positions].unsqueeze(2)
        # The first place among the guesses whose chance reaches the drawn number; past the last: none is right.
        place = (chance >= self._right_at[:levels]).sum(dim=2, keepdim=True)
        guessed = (right + self._wrong) % self.vocab
        return torch.where(torch.arange(len(self._wrong), device=places.device) == place, right, guessed)

    def overrule_target(self, logits: Tensor, tokens: Tensor, places: Tensor) -> None:
        """Have each row of `logits` [n, vocab] say what follows its token."""
        logits.scatter_(1, self.next_tokens(tokens, places).unsqueeze(1), TARGET_SCORE)

    def overrule_draft(self, logits: Tensor, anchors: Tensor, places: Tensor) -> None:
        """Have `logits` [n * levels, vocab] prefer the guesses from `anchors` [n]."""
        levels = len(logits) // len(anchors)
        tokens = self.guesses(anchors, places, levels).flatten(0, 1)
        logits.scatter_(1, tokens, self._scores.to(logits.dtype).expand_as(tokens))

    def right_levels(self, anchor: int, place: int, levels: int, guesses: int = 1) -> int:
        """Return how many levels from an anchor are right in one of the first `guesses`, by plain steps."""
        for level in range(1, levels + 1):
            token = (
                anchor - int(self._tokens[place % self.positions]) + int(self._tokens[(place + level) % self.positions])
            ) % self.vocab
            where = torch.tensor([place], device=self._tokens.device)
            block = self.guesses(torch.tensor([anchor], device=self._tokens.device), where, level)
            if token not in block[0, level - 1, :guesses].tolist():
                return level - 1
        return levels

    def _offsets(self, tokens: Tensor, places: Tensor) -> Tensor:
        return (tokens.long() - self._tokens[places.long() % self.positions]) % self.vocab

    def _at(self, offsets: Tensor, places: Tensor) -> Tensor:
        return (offsets + self._tokens[places.long() % self.positions]) % self.vocab


def follow(script: Script) -> None:
    """Have the models that SGLang makes in this process from now on follow `script`; for good."""
    from sglang.srt.models.dspark import Qwen3DSparkModel
    from sglang.srt.models.qwen3_moe import Qwen3MoeForCausalLM

    target, draft, base = Qwen3MoeForCausalLM.forward, Qwen3DSparkModel.forward, Qwen3DSparkModel.compute_base_logits

    def target_forward(
        model: Any, input_ids: Tensor, positions: Tensor, forward_batch: Any, *rest: Any, **more: Any
    ) -> Any:
        output = target(model, input_ids, positions, forward_batch, *rest, **more)
        logits = output.next_token_logits
        if logits is None:
            return output
        tokens, places = input_ids, positions
        if len(logits) != len(tokens):
            last = forward_batch.extend_seq_lens.cumsum(0) - 1
            tokens, places = tokens[last], places[last]
        script.overrule_target(logits, tokens, places)
        return output

    def draft_forward(model: Any, input_ids: Tensor, positions: Tensor, *rest: Any, **more: Any) -> Any:
        # Within a graph these are its buffers, and the logits come later in the same graph.
        model.scripted = input_ids, positions
        return draft(model, input_ids, positions, *rest, **more)

    def base_logits(model: Any, hidden: Tensor) -> Any:
        logits, features = base(model, hidden)
        levels = model.config.block_size
        tokens, places = (part.view(len(logits) // levels, -1)[:, 0] for part in model.scripted)
        script.overrule_draft(logits, tokens, places)
        return logits, features

    Qwen3MoeForCausalLM.forward = target_forward
    Qwen3DSparkModel.forward, Qwen3DSparkModel.compute_base_logits = draft_forward, base_logits
