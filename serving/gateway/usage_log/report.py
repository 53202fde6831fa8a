"""Sums a log of use by tenant, tier, replica, day or request: each request counts by the record of it that holds."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import duckdb

from sparktier.configs.errors import ArtifactError
from sparktier.serving.gateway.usage_log.journal import FILES
from sparktier.serving.gateway.usage_log.records import STATES

_KEYS = {
    "tenant": "tenant",
    "tier": "tier",
    "replica": "replica",
    "day": "strftime(epoch_ms(started_at_ms), '%Y-%m-%d')",
    "request": "engine_id",
}
Row = dict[str, object]
_COLUMNS = {
    **dict.fromkeys(("state", "engine_id", "request_id", "tenant", "tier", "kind"), "VARCHAR"),
    **dict.fromkeys(("at_ms", "started_at_ms", "users", "replica", "prompt_tokens", "completion_tokens"), "BIGINT"),
}
_QUERY = """
with lines as (
    select * from read_json({files}, format='newline_delimited', ignore_errors=true, columns={columns})
    where engine_id is not null
), held as (
    select * from lines qualify row_number() over (
        partition by engine_id order by list_position({states}, state) desc, at_ms desc
    ) = 1
)
select {keys}
    count(*) as requests,
    sum(users)::bigint as users,
    sum(prompt_tokens)::bigint as prompt_tokens,
    sum(completion_tokens)::bigint as completion_tokens,
    count(*) filter (where state <> 'complete') as incomplete
from held where started_at_ms >= {since_ms}
group by all order by all
"""


def usage_rows(folder: Path, *, by: Sequence[str], since: datetime | None = None) -> list[Row]:
    """Return a row for each value of `by`, keys of `_KEYS`, of the requests that began at `since` or later.

    Raises:
        ArtifactError: `folder` has no log of use.
    """
    files = [str(file) for file in sorted(folder.glob(FILES))]
    if not files:
        raise ArtifactError(f"{folder}: must be a log of use (found no {FILES}). Name the folder of usage.path.")
    query = _QUERY.format(
        files=_sql(files),
        columns="{" + ", ".join(f"{name}: '{kind}'" for name, kind in _COLUMNS.items()) + "}",
        states=_sql(STATES),
        keys="".join(f"{_KEYS[key]} as {key}, " for key in by),
        since_ms=0 if since is None else round(since.timestamp() * 1000),
    )
    found = duckdb.connect().execute(query)
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, values, strict=True)) for values in found.fetchall()]


def _sql(values: Sequence[str]) -> str:
    quoted = ("'" + value.replace("'", "''") + "'" for value in values)
    return f"[{', '.join(quoted)}]"
