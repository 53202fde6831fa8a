"""Level-synchronous expansion of a draft tree under a Markov head, batched over requests and parents.

Every level is one gather, one matrix product and one top-k (or draw) for all parents of all requests; a tree thus costs
about what the chain's own Markov loop costs (PCTree, arXiv 2608.02123). Marginals without the parent's token do not
make useful trees.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparktier.kernels.noise import Stream, draw_distinct, stream_seeds
from sparktier.kernels.vocab_search import leading_tokens, top_tokens

EdgeAcceptance = Callable[[Tensor, int], Tensor]
"""(child draft probability q [batch, parents, children], depth of the child) -> P(child accepted | parent accepted),
same shape. Values outside [0, 1] are clamped, NaN counts as 0."""

SlotAcceptance = Callable[[Tensor, int], Tensor]
"""(q [batch, parents, V], depth of the child) -> chance [batch, parents, children] that the child in this place of
the draw order is accepted. It sees q before anything is drawn from it and nothing of the draws: that is what keeps
admission non-anticipating. Made non-rising along the children, so that a budget can't skip a draw."""

NO_DISTRIBUTION = -1


class MarkovHead(NamedTuple):
    """Low-rank correction of the next token's logits by the previous token: w1, w2 [V, rank]."""

    w1: Tensor
    w2: Tensor


class Shape(NamedTuple):
    """Static bounds of an expansion: levels below the anchor, parents expanded per level, children per parent."""

    depth: int
    parents: int
    children: int


class Candidates(NamedTuple):
    """Every drafted node of a round, level by level, before a budget chooses among them; all [batch, nodes].

    Node 0 is the anchor. parents: node of the parent, an earlier one (-1 for the anchor). survival: float32
    probability that the target's walk reaches the node, never above the parent's; 0 marks a place that holds no token.
    distributions: index of the distribution (see `DraftDistributions`) that the node's children were drawn from, or
    NO_DISTRIBUTION.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    survival: Tensor
    distributions: Tensor


class DraftDistributions(NamedTuple):
    """The distributions that drawn children came from, in the order of `Candidates.distributions`.

    tokens [batch, distributions, listed] int64: what could be drawn; probs, same shape, float32: q of it. A token may
    be listed twice, then once with q = 0. vocabulary_size: of the rows that `dense` returns.
    """

    tokens: Tensor
    probs: Tensor
    vocabulary_size: int

    def dense(self, requests: Tensor, distributions: Tensor) -> Tensor:
        """q of distribution `distributions[i]` of request `requests[i]` over the vocabulary: both [n] -> [n, V]."""
        at = (requests, distributions)
        empty = self.probs.new_zeros(len(requests), self.vocabulary_size)
        return empty.scatter_add_(1, self.tokens[at], self.probs[at])


class _Parents(NamedTuple):
    """The nodes expanded on one level, each [batch, parents]."""

    nodes: Tensor
    tokens: Tensor
    survival: Tensor


_Offspring = Callable[[_Parents, int], tuple[Tensor, Tensor]]
"""(parents, depth) -> tokens and chances [batch, parents, children]."""


def expand_top(
    *,
    anchors: Tensor,
    block_logits: Tensor,
    head: MarkovHead,
    temperatures: Tensor,
    shape: Shape,
    edge_acceptance: EdgeAcceptance,
    shortlist: int | None = None,
) -> Candidates:
    """The likeliest children of every parent, for target-match and greedy walks.

    With a `shortlist` only about so many tokens of each block row, those it ranks highest before any parent is known,
    are conditioned on parents; q is normalised over them. Which tokens are proposed never changes the output.

    Args:
        anchors: [batch] int64, the last committed tokens.
        block_logits: [batch, block, V], any float dtype; row d predicts depth d + 1. At least `shape.depth` rows.
        head: the drafter's Markov head.
        temperatures: [batch] float32, positive, of the softmax whose probabilities `edge_acceptance` was fitted on.
        shape: bounds of the tree.
        edge_acceptance: calibrated chance of each edge.
    """
    listed = _Listed(block_logits[:, : shape.depth], head, shortlist)

    def offspring(parents: _Parents, depth: int) -> tuple[Tensor, Tensor]:
        q, places = _top_children(
            listed.bias(parents, depth), listed.logits[:, depth - 1], temperatures, shape.children
        )
        return listed.vocabulary(places, depth), edge_acceptance(q, depth).masked_fill(q <= 0, 0.0)

    return _grow(anchors, shape, offspring)


def expand_drawn(
    *,
    anchors: Tensor,
    block_logits: Tensor,
    head: MarkovHead,
    temperatures: Tensor,
    shape: Shape,
    slot_acceptance: SlotAcceptance,
    seeds: Tensor,
    anchor_positions: Tensor,
    shortlist: int | None = None,
) -> tuple[Candidates, DraftDistributions]:
    """Children drawn without replacement, in draw order, for `accept_tree.walk_drawn`; arguments as `expand_top`.

    Also returns the distributions that were really sampled; `Candidates.distributions` indexes them. With a `shortlist`
    all other tokens have q = 0. The list is made of block logits alone, before any draw. A slot's survival is its
    parent's times `slot_acceptance`, so neither its own token nor any token below it can decide whether it is expanded
    or selected (DSpark paper, Appendix A).

    Args:
        seeds, anchor_positions: [batch] int64, keys of the draws.
    """
    keys = stream_seeds(seeds=seeds, stream=Stream.DRAFT, rounds=anchor_positions)
    listed = _Listed(block_logits[:, : shape.depth], head, shortlist)
    distributions: list[tuple[Tensor, Tensor]] = []

    def offspring(parents: _Parents, depth: int) -> tuple[Tensor, Tensor]:
        scores = _conditioned(listed.bias(parents, depth), listed.logits[:, depth - 1], temperatures)
        q = torch.softmax(scores, dim=-1)
        distributions.append((listed.tokens[:, depth - 1].unsqueeze(1).expand_as(q), q))
        places = draw_distinct(
            weights=q.flatten(0, 1),
            count=shape.children,
            seeds=keys.repeat_interleave(q.shape[1]),
            positions=parents.nodes.flatten(),
        ).view(*q.shape[:2], -1)
        slots = slot_acceptance(q, depth).cummin(dim=-1).values
        return listed.vocabulary(places.clamp(min=0), depth), slots.masked_fill(places < 0, 0.0)

    candidates = _grow(anchors, shape, offspring)
    tokens, probs = (torch.cat(parts, dim=1) for parts in zip(*distributions, strict=True))
    return candidates, DraftDistributions(tokens, probs, len(head.w2))


class _Listed:
    """The tokens of each block row that are conditioned on parents: all, or the `count` that the row ranks highest.

    logits [batch, depth, listed]; tokens, same shape: which they are.
    """

    def __init__(self, block_logits: Tensor, head: MarkovHead, count: int | None) -> None:
        self._head, self._w2 = head, None
        if count is None:
            self.logits = block_logits
            self.tokens = torch.arange(len(head.w2), device=block_logits.device).expand_as(block_logits)
        else:
            self.logits, self.tokens = leading_tokens(scores=block_logits, count=min(count, block_logits.shape[-1]))
            # Several times as fast on a CPU as indexing with brackets.
            self._w2 = head.w2.index_select(0, self.tokens.flatten()).view(*self.tokens.shape, -1)

    def bias(self, parents: _Parents, depth: int) -> Tensor:
        """What the head adds to `logits` under each parent, all in one product: [batch, parents, listed]."""
        latent = self._head.w1[parents.tokens]
        return latent @ (self._head.w2.T if self._w2 is None else self._w2[:, depth - 1].transpose(1, 2))

    def vocabulary(self, places: Tensor, depth: int) -> Tensor:
        """Token ids of `places` [batch, parents, children] in the list of this depth."""
        return self.tokens[:, depth - 1].gather(1, places.flatten(1)).view_as(places)


def _grow(anchors: Tensor, shape: Shape, offspring: _Offspring) -> Candidates:
    """Level by level: the offspring of all parents, and the parents of the next level."""
    start = torch.zeros_like(anchors).unsqueeze(1)
    parents = _Parents(start, anchors.unsqueeze(1), torch.ones_like(start, dtype=torch.float32))
    levels = [Candidates(parents.tokens, start - 1, start, parents.survival, start + NO_DISTRIBUTION)]
    nodes = expanded = 1
    for depth in range(1, shape.depth + 1):
        level = _level(parents, depth, *offspring(parents, depth))
        parents, ranks = _frontier(level, nodes, shape.parents)
        if depth < shape.depth:
            distributions = expanded + torch.arange(ranks.shape[1], device=ranks.device).expand_as(ranks)
            level = level._replace(distributions=level.distributions.scatter(1, ranks, distributions))
        levels.append(level)
        nodes, expanded = nodes + level.tokens.shape[1], expanded + ranks.shape[1]
    levels[0] = levels[0]._replace(distributions=start)
    return Candidates(*(torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)))


def _top_children(bias: Tensor, block_row: Tensor, temperatures: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """q and tokens [batch, parents, count] of the likeliest children, falling."""
    if bias.is_cuda:
        from sparktier.kernels.expand_triton import top_children_triton

        return top_children_triton(bias=bias, block_row=block_row, temperatures=temperatures, count=count)
    logits = _conditioned(bias, block_row, temperatures)
    best, tokens = top_tokens(scores=logits, count=count)
    return torch.exp(best - logits.logsumexp(dim=-1, keepdim=True)), tokens


def _conditioned(bias: Tensor, block_row: Tensor, temperatures: Tensor) -> Tensor:
    """(U + bias) / T: bias [batch, parents, V], block_row [batch, V] -> float32. Overwrites a float32 bias."""
    return bias.float().add_(block_row.unsqueeze(1)).div_(temperatures.view(-1, 1, 1))


def _level(parents: _Parents, depth: int, tokens: Tensor, acceptance: Tensor) -> Candidates:
    """The children [batch, parents, children] of one level as candidates."""
    edge = torch.nan_to_num(acceptance.float(), nan=0.0).clamp(0.0, 1.0)
    survival = (parents.survival.unsqueeze(2) * edge).flatten(1)
    owners = parents.nodes.unsqueeze(2).expand_as(tokens).flatten(1)
    flat = tokens.flatten(1)
    return Candidates(flat, owners, torch.full_like(flat, depth), survival, torch.full_like(flat, NO_DISTRIBUTION))


def _frontier(level: Candidates, first_node: int, limit: int) -> tuple[_Parents, Tensor]:
    """The next level's parents: the likeliest `limit` nodes of this one, earlier first among equals."""
    order = level.survival.argsort(dim=1, descending=True, stable=True)[:, :limit]
    parts = (level.tokens.gather(1, order), level.survival.gather(1, order))
    return _Parents(order + first_node, *parts), order
