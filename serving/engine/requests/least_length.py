"""A minimum length forbids the tokens that would end an answer, but only while another token is allowed.

A complete grammar allows only its end. If that were forbidden too, no token would be left, so the end wins.
"""

import functools
from typing import Any

from sglang.srt.sampling.penaltylib.min_new_tokens import BatchedMinNewTokensPenalizer

EARLY_STOP = -1e6
"""Added to the logit of a token that would end an answer too early. It is not -inf, which would tie with tokens that a
grammar forbids. Next to any other token it gives a probability of exactly 0 in float32, at temperatures up to 1000."""


def install() -> None:
    """Make SGLang's own penalizer use EARLY_STOP in this process."""
    stock = BatchedMinNewTokensPenalizer._prepare

    @functools.wraps(stock)
    def prepare(self: Any) -> None:
        stock(self)
        self.stop_token_penalties.clamp_(min=EARLY_STOP)

    BatchedMinNewTokensPenalizer._prepare = prepare
