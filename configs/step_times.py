"""The file of step times that `sparktier profile` writes: what one step of one deployment costs, part by part.

Owns its schema, what a sane table is, and which deployment a table belongs to.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparktier.configs.errors import ArtifactError
from sparktier.configs.files import read_json, write_json

REFERENCE_TABLES = Path(__file__).parent / "step_time_tables"
"""Committed tables `<name>.json` of machines that were measured once: for simulations and tests, for no deployment."""

_MEASURE_AGAIN = "Measure it again with `sparktier profile`."

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Ms = Annotated[float, Field(ge=0)]
Curve = Annotated[tuple[tuple[Annotated[int, Field(ge=0)], Ms], ...], Field(min_length=1)]
"""Points (count, ms) of a line, counts rising: straight between them, beyond the last as steep as before it."""
RungNumber = Annotated[int, Field(ge=0, le=15)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TableKey(_Part):
    """The deployment that a table was measured on. A table prices no other."""

    model_sha256: Sha256 | None
    """None in a reference table, which belongs to no deployment."""
    draft_sha256: Sha256 | None
    """None where nothing drafts."""
    device: str
    dtype: str
    tensor_parallel: Annotated[int, Field(ge=1)]
    expert_parallel: Annotated[int, Field(ge=1)]
    sglang: str
    sparktier: str
    attention_data_parallel: Annotated[int, Field(ge=1)] = 1
    row_buckets: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Row counts that a verify pass is filled up to, rising; above the last one, and where there are none, none is."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        _require_rising("row_buckets", self.row_buckets)
        return self


class StepTimeTable(_Part):
    """Milliseconds of one step: base + by requests + by rows + the rung's draft by requests + context.

    A prefill chunk is a step of its own, `prefill_ms`. More rows, requests or prompt tokens never make a step shorter.
    """

    schema_version: Literal[1] = 1
    key: TableKey
    source: str
    """Where the figures come from: command, commit, date, or the document that has them."""
    base_ms: Annotated[float, Field(gt=0)]
    per_requests_ms: Curve
    per_rows_ms: Curve
    """By the rows of the pass, anchors included."""
    draft_ms: Annotated[Mapping[RungNumber, Curve], Field(min_length=1)]
    """By rung and requests: drafting and keeping the draft's KV. Under rung 0, what `off` adds."""
    per_context_ms: Ms
    """For each 1,000 tokens of KV that the step reads, over all its requests."""
    prefill_ms: Curve
    """By prompt tokens of a prefill step."""
    error_frac_p50: Ms | None
    """Median of |predicted - measured| / measured over windows that the fit had not seen; None: never measured."""
    error_frac_p90: Ms | None

    @model_validator(mode="after")
    def _sane(self) -> Self:
        curves = {"per_requests_ms": self.per_requests_ms, "per_rows_ms": self.per_rows_ms}
        for name, curve in {**curves, "prefill_ms": self.prefill_ms}.items():
            _require_rising(name, [count for count, _ in curve])
            _require_no_fall(name, curve)
        for rung, curve in self.draft_ms.items():
            _require_rising(f"draft_ms.{rung}", [count for count, _ in curve])
            _require_no_fall(f"per_requests_ms with draft_ms.{rung}", _sum(self.per_requests_ms, curve))
        return self


def read_table(path: Path) -> StepTimeTable:
    """Read a table of step times.

    Raises:
        ArtifactError: the file is missing, of another schema, or says that more work takes less time.
    """
    try:
        return StepTimeTable.model_validate(read_json(path, "a table of step times"))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"][:1])
        reason = first["msg"].removeprefix("Value error, ")
        found = "" if first["type"] == "value_error" else f" (found {first['input']!r:.80})"
        raise ArtifactError(f"{path}: {where}{reason}{found}. {_MEASURE_AGAIN}") from None


def write_table(path: Path, table: StepTimeTable) -> None:
    """Replace the file at `path`. Raises ArtifactError when it can't be written."""
    write_json(path, table.model_dump(mode="json"))


def reference_table(name: str) -> StepTimeTable:
    """Return a committed table. Raises ArtifactError where there is none of this name."""
    names = sorted(file.stem for file in REFERENCE_TABLES.glob("*.json"))
    if name not in names:
        raise ArtifactError(
            f"step times: a reference table must be one of {', '.join(names)} (found {name!r}). Name one of these."
        )
    return read_table(REFERENCE_TABLES / f"{name}.json")


def require_own(table: StepTimeTable, key: TableKey, source: str) -> None:
    """Refuse a table of another deployment, or of this one before it changed; `source` names the table in messages.

    Raises:
        ArtifactError: a part of the two keys differs, or the table is a reference that fits no deployment.
    """
    if table.key.model_sha256 is None:
        raise ArtifactError(
            f"{source}: must be measured on this deployment (found a reference table). {_MEASURE_AGAIN}"
        )
    for name in TableKey.model_fields:
        theirs, ours = getattr(table.key, name), getattr(key, name)
        if theirs != ours:
            raise ArtifactError(
                f"{source}: {name} must be {_shown(ours)}, that of this deployment (found {_shown(theirs)}). "
                f"{_MEASURE_AGAIN}"
            )


def _require_rising(name: str, counts: Sequence[int]) -> None:
    for before, after in pairwise(counts):
        if after <= before:
            raise ValueError(f"{name}: counts must rise (found {after} after {before})")


def _require_no_fall(name: str, curve: Curve) -> None:
    for (before, its_ms), (after, ms) in pairwise(curve):
        # Sums of two rounded curves may fall by a rounding error.
        if ms < its_ms * (1 - 1e-9):
            raise ValueError(f"{name} must not fall (found {ms:g} ms at {after} after {its_ms:g} ms at {before})")


def _sum(one: Curve, other: Curve) -> Curve:
    """The sum of two curves, at every count where either has a point."""
    counts = sorted({count for count, _ in (*one, *other)})
    return tuple((count, curve_ms(one, count) + curve_ms(other, count)) for count in counts)


def curve_ms(curve: Curve, count: float) -> float:
    """Return the time at `count`: straight between points, as before the first there, and beyond the last as steep as
    the last piece, if that rises.
    """
    if len(curve) == 1 or count <= curve[0][0]:
        return curve[0][1]
    after = min(bisect_left(curve, count, key=lambda point: point[0]), len(curve) - 1)
    (x, ms), (next_x, next_ms) = curve[after - 1], curve[after]
    slope = (next_ms - ms) / (next_x - x)
    return ms + slope * (count - x) if count <= next_x else next_ms + max(0.0, slope) * (count - next_x)


def _shown(value: object) -> str:
    """A value of a key as messages show it: digests by their first 12 digits."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else repr(value)
