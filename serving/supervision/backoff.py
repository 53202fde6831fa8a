"""When a failed part is started again: exponential backoff with jitter, and a reset after a healthy spell.

Pure; times and the source of randomness are passed in.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """The longest pause doubles from `first_s` to `max_s`; a spell of `healthy_after_s` starts that anew."""

    first_s: float
    max_s: float
    healthy_after_s: float


@dataclass
class Restarts:
    """The failures of one part, and the pause that its next start waits."""

    backoff: Backoff
    rng: random.Random
    failures: int = 0

    def failed(self, *, served_s: float) -> float:
        """Count a failure after `served_s` seconds of service and return the pause in seconds before the next start.

        It is drawn between half the longest pause and all of it: parts that failed together don't come back together.
        """
        if served_s >= self.backoff.healthy_after_s:
            self.failures = 0
        self.failures += 1
        # The exponent is bounded because 2.0**1100 overflows long before anyone has given up on the replica.
        longest_s = min(self.backoff.max_s, self.backoff.first_s * 2.0 ** min(self.failures - 1, 60))
        return longest_s * self.rng.uniform(0.5, 1.0)
