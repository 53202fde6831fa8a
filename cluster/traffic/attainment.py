"""Whether promises were kept: the report rows of offered requests, by tier, with intervals.

Kept means: the answer is whole and of the tier that was asked for, (tokens - 1) / (last - first token) is the promised
speed or more, and the first token came within its budget. Every offered request counts, so refusals and errors are
misses. The speed of an answer under 32 tokens says little: such answers are counted apart, by their first token alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparktier.cluster.arrays import Flags, Floats, Ints

LEAST_TOKENS = 32
"""Answers of so many tokens are held to the promised speed."""
_BLOCKS = 20
_RESAMPLED = 500
_LOW, _HIGH = 0.025, 0.975


class Promise(NamedTuple):
    """What a tier promises; None promises nothing."""

    tier: str
    tok_s: float | None
    ttft_ms: float | None


class Result(NamedTuple):
    """What became of one offered request. Times are those of the replica where it tells them, else the client's."""

    at_ms: float
    tokens: int
    ttft_ms: float | None
    tok_s: float | None
    error: str | None = None
    """Why there is no whole answer: `429 too_many_requests`, `lost` and the like."""
    downgraded: bool = False


class _Score(NamedTuple):
    """Figures of some results of one tier. None where there is nothing to take them from, or nothing is promised."""

    attainment_frac: float | None
    short_attainment_frac: float | None
    attained_tok_s_p50: float | None
    attained_tok_s_p5: float | None
    ttft_ms_p50: float | None
    ttft_ms_p99: float | None
    goodput_tok_s: float | None


_DIGITS = _Score(4, 4, 3, 3, 1, 1, 2)
_REFUSED = ("429", "503")


def kept(result: Result, promise: Promise) -> bool:
    """Return whether the promise was kept."""
    if result.error is not None or result.downgraded:
        return False
    if promise.ttft_ms is not None and (result.ttft_ms is None or result.ttft_ms > promise.ttft_ms):
        return False
    if promise.tok_s is None or is_short(result):
        return True
    return result.tok_s is not None and result.tok_s >= promise.tok_s


def is_short(result: Result) -> bool:
    """Return whether this is a whole answer that is too short for its speed to be judged."""
    return result.error is None and result.tokens < LEAST_TOKENS


class _Columns(NamedTuple):
    """Results as arrays [n]; speeds and waits that say nothing are NaN."""

    kept: Flags
    short: Flags
    tok_s: Floats
    ttft_ms: Floats
    good_tokens: Ints

    def taken(self, index: Ints) -> "_Columns":
        """Return these rows."""
        return _Columns(
            self.kept[index], self.short[index], self.tok_s[index], self.ttft_ms[index], self.good_tokens[index]
        )


def _columns(results: Sequence[Result], promise: Promise) -> _Columns:
    good = [kept(each, promise) for each in results]
    judged = [each.error is None and not is_short(each) for each in results]
    told = [
        (each.tok_s if long else None, each.ttft_ms if each.error is None else None)
        for each, long in zip(results, judged, strict=True)
    ]
    speeds = np.array([[math.nan if one is None else one for one in pair] for pair in told]).reshape(-1, 2)
    tokens = [each.tokens * one for each, one in zip(results, good, strict=True)]
    short = np.array([is_short(each) for each in results], dtype=np.bool_)
    return _Columns(np.array(good, np.bool_), short, speeds[:, 0], speeds[:, 1], np.array(tokens, np.int64))


def _score(columns: _Columns, promise: Promise, took_ms: float) -> _Score:
    promised = promise.tok_s is not None or promise.ttft_ms is not None
    short = columns.short
    return _Score(
        attainment_frac=_frac(columns.kept[~short]) if promised else None,
        short_attainment_frac=_frac(columns.kept[short]) if promise.ttft_ms is not None else None,
        attained_tok_s_p50=_quantile(columns.tok_s, 0.5),
        attained_tok_s_p5=_quantile(columns.tok_s, 0.05),
        ttft_ms_p50=_quantile(columns.ttft_ms, 0.5),
        ttft_ms_p99=_quantile(columns.ttft_ms, 0.99),
        goodput_tok_s=1000.0 * float(columns.good_tokens.sum()) / took_ms if promised else None,
    )


def tier_row(
    results: Sequence[Result], promise: Promise, *, span_ms: float, took_ms: float, throughput_tok_s: float
) -> dict[str, Any]:
    """Return the report row of one tier.

    Args:
        results: of all requests that were offered to the tier.
        promise: of the tier.
        span_ms: time in which they were offered.
        took_ms: time until the last answer of the whole run ended.
        throughput_tok_s: tokens of all tiers per second, the same in each row.
    """
    columns = _columns(results, promise)
    at = np.array([each.at_ms for each in results])
    place = np.minimum((_BLOCKS * at / span_ms).astype(np.int64), _BLOCKS - 1)
    blocks = [np.flatnonzero(place == block) for block in range(_BLOCKS)]
    errors = [each.error for each in results if each.error is not None]
    return {
        "tier": promise.tier,
        "requests": len(results),
        **_rounded(_score(columns, promise, took_ms)),
        "throughput_tok_s": round(throughput_tok_s, 2),
        "errors": len(errors),
        "refused": sum(error.startswith(_REFUSED) for error in errors),
        "downgraded": sum(each.downgraded for each in results),
        "short": sum(map(is_short, results)),
        "promise_tok_s": promise.tok_s,
        "promise_ttft_ms": promise.ttft_ms,
        **_intervals(blocks, lambda index: _score(columns.taken(index), promise, took_ms)),
    }


def _intervals(blocks: Sequence[Ints], score: Callable[[Ints], _Score]) -> dict[str, Any]:
    """Return 95% intervals of the figures of a score, as `NAME_low` and `NAME_high`.

    Requests that are close in time meet the same queue, so blocks of time are drawn with replacement, not requests.
    """
    rng = np.random.default_rng(0)
    draws = rng.integers(_BLOCKS, size=(_RESAMPLED, _BLOCKS))
    drawn = [score(np.concatenate([blocks[block] for block in draw])) for draw in draws]
    found: dict[str, Any] = {}
    for name in _Score._fields:
        values = np.array([value for each in drawn if (value := getattr(each, name)) is not None])
        digits = getattr(_DIGITS, name)
        found[f"{name}_low"] = _digits(_quantile(values, _LOW), digits)
        found[f"{name}_high"] = _digits(_quantile(values, _HIGH), digits)
    return found


def _rounded(score: _Score) -> dict[str, Any]:
    return {name: _digits(getattr(score, name), getattr(_DIGITS, name)) for name in _Score._fields}


def _digits(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _frac(kept: Flags) -> float | None:
    return float(kept.mean()) if len(kept) else None


def _quantile(values: Floats, share: float) -> float | None:
    known = values[~np.isnan(values)]
    return float(np.quantile(known, share)) if len(known) else None
