"""The target's next-token distribution p, or its token, at verified rows, after penalties, grammar and logit bias.

Rows are worked on only where an accept rule reads them.
"""

from functools import cached_property
from typing import Any

import torch
from sglang.srt.speculative.spec_utils import GrammarTree, build_grammar_vocab_mask
from torch import Tensor

from sparktier.kernels.draft_tree import DraftTree, row_links
from sparktier.kernels.noise import draw
from sparktier.kernels.target_probs import SamplingRows, greedy_tokens, target_probs
from sparktier.kernels.winners import Winners, of_tokens
from sparktier.serving.engine.sampling.keyed_sampler import sampling_rows
from sparktier.serving.engine.slots.penalty_table import PenaltyTable
from sparktier.serving.engine.speculation.verify_pass import Verified

# At a time, of 4 bytes each: 883 rows of a vocabulary of 152,000.
_MOST_PROBABILITIES = 1 << 27


class TargetDistribution:
    """What the target says in row `rows[i]` of request `requests[i]`.

    With penalties a row's distribution depends on the tokens before it, so rows must then be read from the root down,
    one level of each request at a time: a row's own token counts as emitted once the row is read.

    Args:
        verified: the pass; rows of its logits that were read are adjusted afterwards, as logprobs need them.
        batch: SGLang's batch, lengths as before the pass.
        tree: what was verified.
        prompt_lens: [batch] int64, on the host.
        grammar: SGLang's mask over [batch * tree width] rows, or None.
    """

    def __init__(
        self,
        verified: Verified,
        *,
        batch: Any,
        tree: DraftTree,
        prompt_lens: Tensor,
        penalties: PenaltyTable,
        grammar: Any,
    ) -> None:
        self._verified, self._tree, self._grammar = verified, tree, grammar
        self._info, self._slots, self._lengths = batch.sampling_info, batch.req_pool_indices, batch.seq_lens
        self._penalties = penalties
        self._seen: Tensor | None = None
        places = penalties.places(batch.reqs)
        if places is not None:
            self._seen = penalties.seen(self._slots[places])
            self._prompt_lens = prompt_lens.to(self._lengths.device)
            # Where each request is in it; -1 for those without penalties.
            self._penalised = torch.full_like(self._lengths, -1, dtype=torch.int64)
            self._penalised[places] = torch.arange(len(places), device=places.device)

    @cached_property
    def _was_read(self) -> Tensor:
        """[rows of the pass] bool: whose logits are adjusted."""
        return torch.zeros(len(self._verified.logits), dtype=torch.bool, device=self._verified.logits.device)

    @property
    def is_penalised(self) -> bool:
        """Whether any request has penalties, so that rows must be read level by level."""
        return self._seen is not None

    @property
    def is_sampled(self) -> bool:
        """Whether any request draws its tokens."""
        return not self._info.is_all_greedy

    @property
    def sorts_rows(self) -> bool:
        """Whether drawing sorts the rows that are read, as top-k and top-p do."""
        return self.is_sampled and (self._sampling.top_ks is not None or self._sampling.top_ps is not None)

    def choose(self, requests: Tensor, rows: Tensor) -> Tensor:
        """The target's own token in each of the n rows: argmax, or drawn with noise keyed by (seed, position)."""
        return self._chosen(self._adjusted(requests, rows), requests, rows)

    def winners(self, requests: Tensor, rows: Tensor) -> Winners:
        """As `choose`, for a walk that looks for a row's best block itself."""
        logits = self._adjusted(requests, rows)
        if self._info.is_all_greedy and logits.is_cuda:
            from sparktier.kernels.greedy_triton import greedy_winners_triton

            return greedy_winners_triton(logits=logits)
        return of_tokens(self._chosen(logits, requests, rows))

    def _chosen(self, logits: Tensor, requests: Tensor, rows: Tensor) -> Tensor:
        if self._info.is_all_greedy:
            return greedy_tokens(logits=logits)
        # A large batch's trees have gigabytes of probabilities.
        most = max(1, _MOST_PROBABILITIES // logits.shape[1])
        parts = [slice(start, start + most) for start in range(0, len(rows), most)]
        return torch.cat([self._drawn(logits[part], requests[part], rows[part]) for part in parts])

    def _drawn(self, logits: Tensor, requests: Tensor, rows: Tensor) -> Tensor:
        distribution = target_probs(logits=logits, sampling=self._sampling.take(requests))
        positions = self._lengths[requests] + self._tree.depths[requests, rows]
        return draw(weights=distribution, seeds=self._info.sampling_seed[requests], positions=positions)

    def probs(self, requests: Tensor, rows: Tensor) -> Tensor:
        """p in each of the n rows: [n, V] float32."""
        return target_probs(logits=self._adjusted(requests, rows), sampling=self._sampling.take(requests))

    @cached_property
    def _sampling(self) -> SamplingRows:
        # Greedy batches don't use it; sampled trees do at every level.
        return sampling_rows(self._info)

    def _adjusted(self, requests: Tensor, rows: Tensor) -> Tensor:
        """Logits [n, V] with everything applied that changes the distribution, in plain decoding's order."""
        verified = self._verified
        # All rows, packed as they are before a graph's padding, need no copy of vocabulary-wide rows.
        places = None if rows is verified.rows else verified.first[requests] + rows
        # Some four times as fast on a CPU as indexing with brackets.
        logits = verified.logits[: len(rows)] if places is None else verified.logits.index_select(0, places)
        if self._seen is None and self._grammar is None and self._info.logit_bias is None:
            return logits
        is_new = self._first_read(places)
        if self._seen is not None:
            self._penalise(logits, self._seen, requests, rows, is_new)
        if self._grammar is not None:
            mask = self._grammar.vocab_mask[requests * self._tree.tokens.shape[1] + rows]
            self._grammar.grammar.apply_vocab_mask(logits=logits, vocab_mask=mask)
        if self._info.logit_bias is not None:
            logits.add_(self._info.logit_bias[requests].masked_fill(~is_new.unsqueeze(1), 0.0))
        if places is not None:
            verified.logits[places] = logits
        return logits

    def _first_read(self, places: Tensor | None) -> Tensor:
        """[n] bool: which of `places`, None for all, were not read before.

        Off the CPU a walk reads the last row of a request again at each level that other requests reach.
        """
        if places is None:
            return torch.ones_like(self._was_read[: len(self._verified.rows)])
        is_new = ~self._was_read[places]
        self._was_read[places] = True
        return is_new

    def _penalise(self, logits: Tensor, seen: Tensor, requests: Tensor, rows: Tensor, is_new: Tensor) -> None:
        """Change the rows of penalised requests that are new, and count the tokens of these rows in `seen`."""
        own = ((self._penalised[requests] >= 0) & is_new).nonzero().view(-1)
        if not len(own):
            return
        requests, rows = requests[own], rows[own]
        places, depths = self._penalised[requests], self._tree.depths[requests, rows]
        tokens = self._tree.tokens[requests, rows]
        # The anchor was counted when it was emitted.
        seen.index_put_((places, tokens), (depths > 0).to(seen.dtype), accumulate=True)
        emitted = self._lengths[requests] + 1 - self._prompt_lens[requests] + depths
        penalised = logits[own]
        self._penalties.apply(penalised, slots=self._slots[requests], seen=seen[places], emitted=emitted)
        logits[own] = penalised


def grammar_tree(batch: Any, tree: DraftTree, *, branching: bool) -> Any:
    """Return `tree` in SGLang's form, None where no request has a grammar. Copies to the host without waiting."""
    if not batch.has_grammar:
        return None
    if not branching:
        return GrammarTree.from_linear_chain(tree.tokens)
    links = row_links(tree=tree)
    return GrammarTree.from_device(links.next_token, links.next_sibling, tree.tokens)


def grammar_mask(batch: Any, tree: Any, barrier: Any, *, device: torch.device) -> Any:
    """Return SGLang's mask over the rows of its `tree`, None for None."""
    if tree is None:
        return None
    return build_grammar_vocab_mask(
        reqs=batch.reqs, tree=tree, sampling_info=batch.sampling_info, device=device, barrier=barrier
    )
