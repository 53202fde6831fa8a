"""Random ragged batches of draft trees for tests."""

import torch

from sparktier.kernels.draft_tree import DraftTree


def random_tree(*, batch: int, rows: int, vocab: int, generator: torch.Generator) -> DraftTree:
    """Random parents among earlier rows; a child takes a token that none of its parent's children holds yet."""
    tokens = torch.randint(vocab, (batch, rows), generator=generator)
    parents, depths = torch.full((batch, rows), -1), torch.zeros(batch, rows, dtype=torch.int64)
    counts = torch.randint(1, rows + 1, (batch,), generator=generator)
    for request in range(batch):
        free = [list(range(vocab)) for _ in range(rows)]
        for row in range(1, int(counts[request])):
            fertile = [earlier for earlier in range(row) if free[earlier]]
            parent = fertile[int(torch.randint(len(fertile), (1,), generator=generator))]
            choice = int(torch.randint(len(free[parent]), (1,), generator=generator))
            tokens[request, row] = free[parent].pop(choice)
            parents[request, row] = parent
            depths[request, row] = depths[request, parent] + 1
    return DraftTree(tokens, parents, depths, counts)
