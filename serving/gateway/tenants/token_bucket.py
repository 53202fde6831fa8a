"""A token bucket with debt: an amount is taken before it is known, and corrected once it is. Pure."""


class TokenBucket:
    """Holds at most `per_min`, and fills by as much in a minute; a correction may take it below nothing.

    An amount above `per_min` waits for a full bucket, so that it is served at last and paid for later.
    """

    def __init__(self, per_min: int, *, now_s: float) -> None:
        self._per_min = per_min
        self._level = float(per_min)
        self._at_s = now_s

    def wait_s(self, amount: int, *, now_s: float) -> float:
        """Return how long `amount` has to wait; 0 when it can be taken now."""
        missing = min(amount, self._per_min) - self._filled(now_s)
        return max(0.0, missing) * 60 / self._per_min

    def take(self, amount: int, *, now_s: float) -> None:
        """Take `amount`; a negative one is given back."""
        self._level = min(self._filled(now_s) - amount, float(self._per_min))
        self._at_s = max(self._at_s, now_s)

    def resize(self, per_min: int, *, now_s: float) -> None:
        """Go on with another rate; debt stays."""
        self._level = min(self._filled(now_s), float(per_min))
        self._at_s = max(self._at_s, now_s)
        self._per_min = per_min

    def _filled(self, now_s: float) -> float:
        passed_s = max(0.0, now_s - self._at_s)
        return min(self._level + passed_s * self._per_min / 60, float(self._per_min))
