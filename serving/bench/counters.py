"""A replica's counters of decode steps, read from its page of metrics."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Totals:
    """A replica's counters since it started: decode steps, their time by part, rounds, rows verified, tokens."""

    steps: float
    rounds: float
    rows: float
    tokens: float
    part_ms: Mapping[str, float]
    padding_rows: float = 0.0
    """Of passes, which no request brought."""

    @property
    def step_ms(self) -> float:
        """Mean time of a decode step."""
        return sum(self.part_ms.values()) / self.steps

    @property
    def users(self) -> float:
        """Mean number of requests in a decode step."""
        return self.rounds / self.steps

    @property
    def round_tokens(self) -> float:
        """Mean number of tokens that a step adds to a request: the accepted length."""
        return self.tokens / self.rounds

    def since(self, before: "Totals") -> "Totals":
        """Return what was added after `before`."""
        parts = {part: ms - before.part_ms.get(part, 0.0) for part, ms in self.part_ms.items()}
        counts = (self.steps - before.steps, self.rounds - before.rounds, self.rows - before.rows)
        padding_rows = self.padding_rows - before.padding_rows
        return Totals(*counts, self.tokens - before.tokens, parts, padding_rows)


def totals_in(page: str) -> Totals:
    """Return the counters on a metrics page in Prometheus' text form, summed over attention groups and tiers."""
    sums: dict[str, float] = {}
    parts: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "sparktier_decode_ms_total":
                part = sample.labels["part"]
                parts[part] = parts.get(part, 0.0) + sample.value
            elif sample.name.startswith("sparktier_"):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value

    def total(name: str) -> float:
        return sums.get(f"sparktier_{name}_total", 0.0)

    counts = (total("decode_steps"), total("rounds"), total("rows_verified"), total("round_tokens"))
    return Totals(*counts, parts, total("padding_rows"))
