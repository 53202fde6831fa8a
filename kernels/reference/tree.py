"""Slow plain versions of expansion, selection, masks, links and compaction: the oracle of the batched ones.

One request at a time, Python lists and float64; ancestors by following parents, selection by growing one best node at a
time. Used by tests and checks, never on the hot path.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

Rows = Sequence[Sequence[float]]


class Node(NamedTuple):
    """One drafted token: the index of its parent node (-1: the anchor itself), depth and survival."""

    token: int
    parent: int
    depth: int
    survival: float


def expand_top(
    *,
    anchor: int,
    block_logits: Rows,
    w1: Rows,
    w2: Rows,
    temperature: float,
    shape: tuple[int, int, int],
    edge_acceptance: Callable[[float, int], float],
) -> list[Node]:
    """All candidates of one request; `shape` is (depth, parents, children)."""
    depth_limit, parent_limit, child_limit = shape
    nodes, frontier = [Node(anchor, -1, 0, 1.0)], [0]
    for depth in range(1, depth_limit + 1):
        level = []
        for parent in frontier:
            q = conditional(block_logits[depth - 1], w1[nodes[parent].token], w2, temperature)
            for token in sorted(range(len(q)), key=lambda t: (-q[t], t))[:child_limit]:
                level.append(len(nodes))
                survival = nodes[parent].survival * edge_acceptance(q[token], depth)
                nodes.append(Node(token, parent, depth, survival))
        frontier = sorted(level, key=lambda node: (-nodes[node].survival, node))[:parent_limit]
    return nodes


def conditional(block_row: Sequence[float], code: Sequence[float], w2: Rows, temperature: float) -> list[float]:
    """softmax((U + W2 code) / T) over the vocabulary."""
    logits = [
        (u + sum(a * b for a, b in zip(code, out, strict=True))) / temperature
        for u, out in zip(block_row, w2, strict=True)
    ]
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return [weight / sum(weights) for weight in weights]


def select_nodes(nodes: Sequence[Node], budget: int) -> list[int]:
    """Grow from the anchor by the likeliest node whose parent is in, until the budget; indices in order."""
    chosen = {0}
    while len(chosen) < budget:
        open_nodes = [
            i for i, node in enumerate(nodes) if i not in chosen and node.parent in chosen and node.survival > 0
        ]
        if not open_nodes:
            break
        chosen.add(min(open_nodes, key=lambda i: (-nodes[i].survival, i)))
    return sorted(chosen)


def ancestors(parents: Sequence[int], row: int) -> set[int]:
    """The row and all above it."""
    seen = {row}
    while parents[row] >= 0:
        row = parents[row]
        seen.add(row)
    return seen


def mask_rows(parents: Sequence[int], row_count: int, prefix_len: int, query_len: int) -> list[list[bool]]:
    """[query][prefix + query] of one request; padding rows see the anchor's column alone."""
    table = []
    for row in range(query_len):
        live = row < row_count
        seen = ancestors(parents, row) if live else {0}
        table.append([live] * prefix_len + [column in seen for column in range(query_len)])
    return table


def pack_bits(bits: Sequence[bool]) -> list[int]:
    """Bytes, lowest bit first; the last one is filled with zeros."""
    return [sum(bit << place for place, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8)]


def links(parents: Sequence[int], row: int) -> tuple[int, int]:
    """(first child, next sibling) of a row, -1 where there is none."""
    children = [other for other, parent in enumerate(parents) if parent == row]
    later = [other for other, parent in enumerate(parents) if parent == parents[row] >= 0 and other > row]
    return min(children, default=-1), min(later, default=-1)
