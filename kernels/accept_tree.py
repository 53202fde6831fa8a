"""Accept rules for draft trees: the match walk and the walk over children drawn without replacement.

Batched over ragged trees, one level at a time. A walk reads only the target rows it reaches, so a caller can compute p
for those alone. With accept.py the only place where sparktier decides which drafted tokens are accepted.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sparktier.kernels.accept import PAD_TOKEN, coins, residual_weights
from sparktier.kernels.draft_tree import NO_ROW, DraftTree
from sparktier.kernels.noise import Stream, draw, stream_seeds

RowReader = Callable[[Tensor, Tensor], Tensor]
"""(requests [n], rows [n]), both int64 -> the content of those rows: tokens [n] int64, or probabilities [n, V]."""


class TreeAcceptance(NamedTuple):
    """What one round commits; all int64.

    accepted [batch]: number of accepted nodes. path [batch, max_depth + 1]: their rows from the anchor (row 0) down,
    then NO_ROW. tokens [batch, max_depth + 1]: the drafts, then the bonus token, then PAD_TOKEN. bonus [batch]: -1
    where the target has no token in the last accepted row (`target_probs.NO_TOKEN`).
    """

    accepted: Tensor
    path: Tensor
    tokens: Tensor
    bonus: Tensor


def walk_matching(*, tree: DraftTree, choose: RowReader, max_depth: int) -> TreeAcceptance:
    """Follow the child that holds the token the target itself chose; stop where there is none.

    The tree form of `accept_matching`, for children that were chosen in any way (top-k, drawn, ranked by any score):
    `choose` is the argmax, or a draw by noise keyed by (seed, position), of the target in the given rows.
    """
    walk = _Walk(tree, max_depth)
    for level, requests in walk.levels():
        chosen = walk.spread(requests, choose(requests, walk.node[requests]))
        found = walk.children() & (tree.tokens == chosen.unsqueeze(1))
        walk.step(level, chosen, found.any(dim=1), found.long().argmax(dim=1))
    return walk.result()


def walk_drawn(
    *,
    tree: DraftTree,
    target_probs: RowReader,
    draft_probs: RowReader,
    seeds: Tensor,
    anchor_positions: Tensor,
    max_depth: int,
    max_children: int,
) -> TreeAcceptance:
    """Verify children drawn without replacement: in draw order, each by the ratio rule against what is left of p.

    Child x is accepted with probability min(1, p(x) / q(x)), q renormalised over undrawn tokens; a rejection replaces p
    by norm((p - q)+) and removes x from q. When no child is accepted, the token is drawn from the p left over. Exact
    only if the children of a node were drawn one after the other from `draft_probs` itself (`noise.draw_distinct`), and
    which slots were admitted never depended on the token in the slot or below it. Source: recursive rejection sampling
    (Jeon et al. 2024, arXiv 2402.14160); DSpark paper, Appendix A.

    Args:
        tree: siblings in draw order.
        target_probs, draft_probs: p and q of the given rows, [n, V]; q is not read in rows without children.
        seeds, anchor_positions: [batch] int64.
        max_depth, max_children: bounds over the batch, known on the host.
    """
    every_row = torch.arange(tree.tokens.shape[1], device=seeds.device).expand_as(tree.tokens)
    tossed = coins(seeds=seeds, rounds=anchor_positions, counters=every_row)
    residual_seeds = stream_seeds(seeds=seeds, stream=Stream.RESIDUAL, rounds=anchor_positions)
    walk = _Walk(tree, max_depth)
    for level, requests in walk.levels():
        rows = walk.node[requests]
        distributions = target_probs(requests, rows), draft_probs(requests, rows)
        siblings = _Siblings(tree.tokens[requests], walk.children()[requests], *distributions)
        for rank in range(max_children if level < max_depth else 0):
            siblings.verify(rank, tossed[requests])
        token = siblings.token_or_leftover(residual_seeds[requests], rows)
        walk.step(level, *(walk.spread(requests, values) for values in (token, siblings.found, siblings.row)))
    return walk.result()


class _Siblings:
    """The children of one node for each of n requests, verified one after the other.

    What is as wide as the vocabulary is worked on only where a child was rejected, which is most of the cost on a CPU.
    """

    def __init__(self, tokens: Tensor, children: Tensor, target: Tensor, draft: Tensor) -> None:
        self.tokens, self.children, self.target, self.draft = tokens, children, target, draft
        self.ranks = children.long().cumsum(dim=1) - 1
        self.found = torch.zeros_like(children[:, 0])
        self.row = torch.zeros_like(tokens[:, 0])
        self.token = torch.zeros_like(self.row)

    def verify(self, rank: int, tossed: Tensor) -> None:
        """Accept or reject the child of this draw rank, where there is one and none was accepted before."""
        is_child = self.children & (self.ranks == rank)
        open_slot = is_child.any(dim=1) & ~self.found
        if not len(_places(open_slot)):
            return
        row = is_child.long().argmax(dim=1)
        token = self.tokens.gather(1, row.unsqueeze(1))
        mass = self.draft.sum(dim=1, keepdim=True)
        coin = tossed.gather(1, row.unsqueeze(1)).squeeze(1)
        undrawn = (self.draft.gather(1, token) / mass).squeeze(1)
        is_accepted = coin * undrawn < self.target.gather(1, token).squeeze(1)
        accept = open_slot & is_accepted
        self._reject(open_slot & ~is_accepted, token, mass)
        self.found = self.found | accept
        self.row = torch.where(accept, row, self.row)
        self.token = torch.where(accept, token.squeeze(1), self.token)

    def token_or_leftover(self, seeds: Tensor, positions: Tensor) -> Tensor:
        """[n]: the accepted child's token; where there is none, a token drawn from the p left over."""
        at = _places(~self.found)
        if not len(at):
            return self.token
        drawn = draw(weights=self.target.index_select(0, at), seeds=seeds[at], positions=positions[at])
        return self.token.index_copy(0, at, torch.where(self.found[at], self.token[at], drawn))

    def _reject(self, rejected: Tensor, token: Tensor, mass: Tensor) -> None:
        """Take the child `token` [n, 1] out of q, and what q, of sum `mass` [n, 1], would have had out of p."""
        at = _places(rejected)
        if not len(at):
            return
        target, draft = self.target.index_select(0, at), self.draft.index_select(0, at)
        left = residual_weights(target_probs=target, draft_probs=draft / mass[at])
        # A target that says nothing here has no mass to share out.
        left /= left.sum(dim=1, keepdim=True).clamp(min=torch.finfo(left.dtype).tiny)
        here = rejected[at].unsqueeze(1)
        self.target = self.target.index_copy(0, at, torch.where(here, left, target))
        self.draft = self.draft.index_copy(0, at, torch.where(here, draft.scatter(1, token[at], 0.0), draft))


def _places(mask: Tensor) -> Tensor:
    """Where `mask` [n] is true; off the CPU every place, as the answer would cost a wait for the device."""
    if mask.device.type == "cpu":
        return mask.nonzero().squeeze(1)
    return torch.arange(len(mask), device=mask.device)


class _Walk:
    """The row that each request has reached, and its path there."""

    def __init__(self, tree: DraftTree, max_depth: int) -> None:
        shape = (len(tree.row_counts), max_depth + 1)
        self.tree = tree
        self.node = torch.zeros_like(tree.row_counts)
        self.walking = torch.ones_like(tree.row_counts, dtype=torch.bool)
        self.accepted = torch.zeros_like(tree.row_counts)
        self.path = tree.tokens.new_full(shape, NO_ROW)
        self.tokens = tree.tokens.new_full(shape, PAD_TOKEN)

    def levels(self) -> Iterator[tuple[int, Tensor]]:
        """Each level and the requests that still walk there (off the CPU all of them), until none does."""
        for level in range(self.path.shape[1]):
            requests = _places(self.walking)
            if not len(requests):
                return
            yield level, requests

    def spread(self, requests: Tensor, values: Tensor) -> Tensor:
        """[batch] from `values` of `requests`, both [n]; others get 0."""
        return values.new_zeros(len(self.node)).index_copy(0, requests, values)

    def children(self) -> Tensor:
        """[batch, rows] bool: children of the rows where requests still walk."""
        return (self.tree.parents == self.node.unsqueeze(1)) & self.walking.unsqueeze(1)

    def step(self, level: int, token: Tensor, found: Tensor, child: Tensor) -> None:
        """Commit `token` [batch] at this level; go on to `child` [batch] where `found` [batch]."""
        self.path[:, level] = self.node.where(self.walking, NO_ROW)
        self.tokens[:, level] = token.where(self.walking, PAD_TOKEN)
        self.walking = self.walking & found
        self.accepted = self.accepted + self.walking
        self.node = torch.where(self.walking, child, self.node)

    def result(self) -> TreeAcceptance:
        """The finished walk."""
        bonus = self.tokens.gather(1, self.accepted.unsqueeze(1)).squeeze(1)
        return TreeAcceptance(self.accepted, self.path, self.tokens, bonus)
