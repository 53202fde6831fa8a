"""Which speeds a replica can give its users, by the model of its steps. Pure."""

from bisect import bisect_right
from collections.abc import Mapping

import numpy as np

from sparktier.cluster.step_time import StepTimeModel


def fastest_alone_tok_s(times: StepTimeModel, drafted_tokens: Mapping[int, int]) -> float:
    """Return a speed that no user exceeds: one alone, on the best rung, whose drafts are all accepted.

    Args:
        times: of a step.
        drafted_tokens: tokens in a row that each rung drafts at most; 0 where it drafts none.
    """
    speeds = []
    for rung, most in drafted_tokens.items():
        # `tokens` of a step need as many rows: the drafted ones before the last, and the anchor.
        tokens = np.arange(1, most + 2, dtype=np.int64)
        speeds.append(float(np.max(1000.0 * tokens / times.step_ms(rung=rung, requests=1, rows=tokens))))
    return max(speeds)


def largest_chunk_tokens(times: StepTimeModel, *, max_stall_ms: float, unit_tokens: int, most_tokens: int) -> int:
    """Return the most prompt tokens whose prefill takes at most `max_stall_ms`, in whole units; 0 where none do.

    Args:
        times: of a step; more tokens never take less.
        max_stall_ms: longest time of one chunk, in which no user gets a token.
        unit_tokens: chunks are multiples of it.
        most_tokens: bound of the answer.
    """
    units = range(1, most_tokens // unit_tokens + 1)
    fitting = bisect_right(units, max_stall_ms, key=lambda count: times.prefill_ms(count * unit_tokens))
    return fitting * unit_tokens
