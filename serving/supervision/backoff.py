"""When a failed part is started again: exponential backoff with jitter, reset after healthy service.

Pure; times and the source of randomness are passed in.
"""

import random
from dataclasses import dataclass, field

from sparktier.configs.settings.settings import SupervisionSettings


@dataclass
class Restarts:
    """The failures of one part, and the pause before its next start.

    The longest pause doubles from `restart_backoff_first_s` to `restart_backoff_max_s`; a part that served for
    `healthy_after_s` starts again from the first.
    """

    settings: SupervisionSettings
    rng: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def failed(self, *, served_s: float) -> float:
        """Count a failure after `served_s` seconds of service and return the pause in seconds before the next start.

        It is drawn between half the longest pause and all of it, so that parts which failed together don't come back
        together.
        """
        if served_s >= self.settings.healthy_after_s:
            self.failures = 0
        self.failures += 1
        # The exponent is bounded: 2.0**1100 would overflow, after years of failures.
        doubled_s = self.settings.restart_backoff_first_s * 2.0 ** min(self.failures - 1, 60)
        return min(self.settings.restart_backoff_max_s, doubled_s) * self.rng.uniform(0.5, 1.0)
