"""Requests drawn from a rate: a Poisson process or a burstier one, with times at which the rate is another."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparktier.cluster.arrays import Floats
from sparktier.cluster.traffic.requests import Requests


class Burst(NamedTuple):
    """A time in which the rate is `factor` times the mean outside of bursts."""

    start_ms: float
    span_ms: float
    factor: float


class Length(NamedTuple):
    """Tokens of one request."""

    prompt_tokens: int
    output_tokens: int


def generated(
    rate_s: float,
    *,
    span_ms: float,
    lengths: Sequence[Length],
    seed: int,
    bursts: Sequence[Burst] = (),
    burstiness: float = 1.0,
) -> Requests:
    """Return open-loop requests: their times depend on no answer.

    Args:
        rate_s: requests per second outside of bursts.
        span_ms: of the whole load.
        lengths: each request draws one of these.
        seed: of times and lengths, which are independent: other lengths leave the times as they are.
        bursts: of another rate; where they overlap, their factors multiply.
        burstiness: coefficient of variation of the gaps between requests: 1 is a Poisson process, 0 a clock.
    """
    at_ms = _times_ms(rate_s / 1000.0, span_ms, bursts, burstiness, np.random.default_rng([seed, 1]))
    drawn = np.random.default_rng([seed, 2]).integers(len(lengths), size=len(at_ms))
    tokens = np.array(lengths, dtype=np.int64)[drawn]
    return Requests(
        at_ms=at_ms,
        prompt_tokens=tokens[:, 0],
        output_tokens=tokens[:, 1],
        session=np.arange(len(at_ms)),
        prefixes=[()] * len(at_ms),
        span_ms=span_ms,
    )


def _times_ms(
    rate_ms: float, span_ms: float, bursts: Sequence[Burst], burstiness: float, rng: np.random.Generator
) -> Floats:
    """Draw times at rate 1 and bend time so that the rate is what it should be everywhere."""
    edges = {0.0, span_ms}
    edges |= {edge for each in bursts for edge in (each.start_ms, each.start_ms + each.span_ms) if 0 < edge < span_ms}
    at_ms = np.array(sorted(edges))
    factors = np.ones(len(at_ms) - 1)
    for each in bursts:
        factors[(at_ms[:-1] >= each.start_ms) & (at_ms[:-1] < each.start_ms + each.span_ms)] *= each.factor
    expected = np.concatenate([[0.0], np.cumsum(rate_ms * factors * np.diff(at_ms))])
    events = _unit_times(float(expected[-1]), burstiness, rng)
    times_ms: Floats = np.interp(events, expected, at_ms)
    return times_ms


def _unit_times(until: float, burstiness: float, rng: np.random.Generator) -> Floats:
    """Draw the times of a process at rate 1 before `until`. More is drawn until it is enough, in blocks of one size."""
    times = np.zeros(1)
    block = 1024
    while times[-1] < until:
        gaps = rng.gamma(burstiness**-2, burstiness**2, block) if burstiness else np.ones(block)
        times = np.concatenate([times, times[-1] + np.cumsum(gaps)])
    inside: Floats = times[1:][times[1:] < until]
    return inside
