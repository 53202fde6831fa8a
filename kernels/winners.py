"""The best token of each block of vocabulary-wide rows: what one pass over the rows leaves to the walk that reads some.

On a GPU the walk that reads a row picks the best block itself, which saves the launches of a reduction.
"""

from typing import NamedTuple

from torch import Tensor


class Winners(NamedTuple):
    """Both [rows, blocks]. scores: of the best token of each block, float, never NaN. tokens: which it is, int64.

    The token of a row is that of its best block, the first among equals; -1 there if the row has none.
    """

    scores: Tensor
    tokens: Tensor

    @property
    def best(self) -> Tensor:
        """[rows] int64: the token of each row."""
        return self.tokens.gather(1, self.scores.argmax(dim=1, keepdim=True)).squeeze(1)


def of_tokens(tokens: Tensor) -> Winners:
    """Tokens [rows] int64 that are known already, as winners of one block."""
    alone = tokens.unsqueeze(1)
    return Winners(alone, alone)
