"""Confines grammar faults to their request: refuses a grammar that allows nothing, and gives the request of a failing
grammar no token.

SGLang calls grammars in the middle of a step, where an error would end the rank.
"""

import functools
import logging
from typing import Any

import torch
from sglang.srt.constrained.base_grammar_backend import BaseGrammarBackend, InvalidGrammarObject
from sglang.srt.constrained.xgrammar_backend import XGrammarGrammar
from sglang.srt.speculative import spec_utils

logger = logging.getLogger(__name__)
# Grammars raise these: errors from C++, and refusals of a token.
_ERRORS = (RuntimeError, ValueError)
NOTHING = "it allows no first token, so no text can follow it. A rule that only refers to itself does that."


def install() -> None:
    """Hook SGLang's grammar backends in this process."""
    BaseGrammarBackend._init_value_dispatch = _refusing_empty(BaseGrammarBackend._init_value_dispatch)
    XGrammarGrammar.fill_vocab_mask = _filling(XGrammarGrammar.fill_vocab_mask)
    XGrammarGrammar.accept_token = _accepting(XGrammarGrammar.accept_token)
    spec_utils.traverse_tree = _traversing(spec_utils.traverse_tree)


def allows_nothing(grammar: Any, *, vocab_size: int) -> bool:
    """Return whether `grammar` allows neither a token nor an end in its current state."""
    try:
        mask = grammar.allocate_vocab_mask(vocab_size=vocab_size, batch_size=1, device="cpu")
        grammar.fill_vocab_mask(mask, 0)
    except _ERRORS:
        return True
    # Masks of xgrammar and llguidance are words of bits that allow; other backends have their own.
    return mask.dtype == torch.int32 and not bool(mask.any())


def _refusing_empty(stock: Any) -> Any:
    @functools.wraps(stock)
    def dispatch(self: Any, key: tuple[str, str], require_reasoning: bool) -> Any:
        grammar = stock(self, key, require_reasoning)
        if grammar is None or isinstance(grammar, InvalidGrammarObject):
            return grammar
        vocab_size = getattr(grammar, "vocab_size", None)
        if vocab_size is None or not allows_nothing(grammar, vocab_size=vocab_size):
            return grammar
        return InvalidGrammarObject(NOTHING)

    return dispatch


def _filling(stock: Any) -> Any:
    @functools.wraps(stock)
    def fill(self: Any, vocab_mask: torch.Tensor, idx: int) -> None:
        try:
            stock(self, vocab_mask, idx)
        except _ERRORS:
            logger.exception("a grammar's mask; its request gets no token: %s", self)
            vocab_mask[idx] = 0

    return fill


def _accepting(stock: Any) -> Any:
    @functools.wraps(stock)
    def accept(self: Any, token: int) -> None:
        try:
            stock(self, token)
        except RuntimeError as error:
            # SGLang's callers expect this error from a failing grammar.
            raise ValueError(f"the grammar failed: {error}") from error

    return accept


def _traversing(stock: Any) -> Any:
    """Wrap `stock`, which fills the masks of one request's rows; if the grammar fails, its rows allow nothing."""

    @functools.wraps(stock)
    def traverse(
        next_token: Any,
        next_sibling: Any,
        drafts: Any,
        grammar: Any,
        masks: torch.Tensor,
        vocab_size: int | None = None,
    ) -> None:
        try:
            stock(next_token, next_sibling, drafts, grammar, masks, vocab_size=vocab_size)
        except _ERRORS:
            logger.exception("a grammar's masks of drafted tokens; its request gets no token")
            masks.zero_()

    return traverse
