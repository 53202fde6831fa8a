"""A least length bars the tokens that would end an answer, but only while anything else is allowed.

A grammar that is complete allows its end alone. Were that barred too, no token would be left, so the end wins.
"""

import functools
from typing import Any

from sglang.srt.sampling.penaltylib.min_new_tokens import BatchedMinNewTokensPenalizer

EARLY_STOP = -1e6
"""Added to the logit of a token that would end an answer too early. Not -inf, which would tie with what a grammar
forbids; beside any other token it leaves a probability of exactly 0 in float32, at any temperature up to 1000."""


def install() -> None:
    """Make SGLang's own penalizer do so in this process."""
    stock = BatchedMinNewTokensPenalizer._prepare

    @functools.wraps(stock)
    def prepare(self: Any) -> None:
        stock(self)
        self.stop_token_penalties.clamp_(min=EARLY_STOP)

    BatchedMinNewTokensPenalizer._prepare = prepare
