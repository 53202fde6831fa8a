"""What a simulated engine reads of an answer: at each of its tokens, the survivals of a draft and what is accepted."""

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from sparktier.cluster.arrays import Floats, Ints


class TokenIds(NamedTuple):
    """The tokens of a prompt and of its answer, for an engine that really runs them."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


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
    ids: TokenIds | None = None
    """Of a recorded answer."""

    @property
    def tokens(self) -> int:
        """Tokens of the answer, the one that prefill yields included."""
        return len(self.survival) + 1

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a recorded prompt."""
        return 0 if self.ids is None else len(self.ids.prompt)

    def last(self, places: int) -> "Answer":
        """Return the answer's last `places`, 1 or more; what came before belongs to the prompt."""
        ids = self.ids
        if ids is not None:
            begun = len(ids.answer) - places - 1
            ids = TokenIds(ids.prompt + ids.answer[:begun], ids.answer[begun:])
        return replace(self, survival=self.survival[-places:], accepted=self.accepted[-places:], ids=ids)


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
