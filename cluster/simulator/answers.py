"""What a simulated engine reads of an answer: at each of its tokens, the survivals of a draft and what is accepted."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sparktier.cluster.arrays import Floats, Ints


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer of fixed tokens. Place p has the draft after token p + 1; the last token has none.

    Speculation is lossless, so the answer is the same under every policy.
    """

    survival: Floats
    """[places, nodes] falling along nodes; 0: no node, or one that lies beyond the answer's end."""
    accepted: Ints
    """[places, nodes + 1] drafted tokens that are accepted if so many of the first nodes are verified."""
    kind: str
    """The class of text."""
    is_chain: bool = True
    """Whether nodes follow each other; else they are a tree's, by falling survival."""
    prompt_tokens: int = 0
    """Of a recorded prompt."""

    @property
    def tokens(self) -> int:
        """Tokens of the answer, the one that prefill yields included."""
        return len(self.survival) + 1


class Texts(Protocol):
    """Where answers come from."""

    def answer(self, rng: np.random.Generator) -> Answer:
        """Draw an answer."""
        ...


def chain_answer(survival: Floats, accepted: Ints, *, kind: str) -> Answer:
    """Return an answer that is drafted by chains.

    Args:
        survival: [places, nodes] chance that a drafted token and all before it are accepted.
        accepted: [places] tokens accepted of a whole chain.
        kind: class of text.
    """
    places, nodes = survival.shape
    # A drafted token beyond the last but one has no use: the last comes with the verification itself.
    useful = places - 1 - np.arange(places)
    inside = np.arange(1, nodes + 1) <= useful[:, None]
    verified = np.minimum(np.arange(nodes + 1), np.maximum(useful, 0)[:, None])
    return Answer(np.where(inside, survival, 0.0), np.minimum(accepted[:, None], verified), kind)
