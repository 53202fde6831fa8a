"""`sparktier usage`: each request counts once, by the record that holds, and the sums are those of the log."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparktier.configs.report import Report
from sparktier.serving.cli.main import main
from sparktier.serving.gateway.usage_log.journal import Journal
from sparktier.serving.gateway.usage_log.records import STATES, UsageRecord, latest, line_of
from sparktier.serving.gateway.usage_log.report import usage_rows

DAY_MS = 86_400_000
CONFIG = Path(__file__).resolve().parents[4] / "configs" / "test.yaml"


def record(engine_id: str, state: str, tenant: str, tier: str, tokens: int, *, day: int = 0) -> UsageRecord:
    started_ms = 1_764_288_000_000 + day * DAY_MS
    return UsageRecord(
        state,  # type: ignore[arg-type]
        started_ms + STATES.index(state),  # type: ignore[arg-type]
        started_ms,
        engine_id,
        f"their-{engine_id}",
        tenant,
        tier,
        "/v1/completions",
        2,
        0,
        3,
        tokens,
    )


def written(folder: Path, records: Sequence[UsageRecord], *, files: int = 1) -> Path:
    for number in range(files):
        lines = b"".join(map(line_of, records[number::files]))
        (folder / f"usage-{number:013d}.jsonl").write_bytes(lines)
    return folder


LOG = [
    record("a", "open", "acme", "gold", 0),
    record("a", "ended", "acme", "gold", 5),
    record("a", "complete", "acme", "gold", 9),
    record("b", "open", "acme", "standard", 0, day=1),
    record("c", "incomplete", "it's", "gold", 4, day=1),
]


def test_each_request_counts_by_the_record_that_holds(tmp_path: Path) -> None:
    folder = written(tmp_path, LOG, files=2)
    counts = {"users": 2, "prompt_tokens": 3, "requests": 1}
    assert usage_rows(folder, by=["tenant", "tier"]) == [
        {"tenant": "acme", "tier": "gold", "completion_tokens": 9, "incomplete": 0} | counts,
        {"tenant": "acme", "tier": "standard", "completion_tokens": 0, "incomplete": 1} | counts,
        {"tenant": "it's", "tier": "gold", "completion_tokens": 4, "incomplete": 1} | counts,
    ]
    [whole] = usage_rows(folder, by=[])
    assert (whole["requests"], whole["completion_tokens"], whole["incomplete"]) == (3, 13, 2)
    since = datetime(2025, 11, 29, tzinfo=UTC)
    assert [row["day"] for row in usage_rows(folder, by=["day"])] == ["2025-11-28", "2025-11-29"]
    assert [row["request"] for row in usage_rows(folder, by=["request"], since=since)] == ["b", "c"]


def test_what_a_crash_has_left_of_a_line_is_passed_over(tmp_path: Path) -> None:
    folder = written(tmp_path, LOG)
    with (folder / "usage-0000000000000.jsonl").open("ab") as file:
        file.write(line_of(LOG[0])[:30] + b"\n\x00\x00\n")
    assert sum(int(str(row["requests"])) for row in usage_rows(folder, by=["tenant"])) == 3


RECORDS = st.lists(
    st.builds(
        record,
        st.sampled_from("abcde"),
        st.sampled_from(STATES),
        st.sampled_from(["t", "u"]),
        st.sampled_from(["x", "y"]),
        st.integers(0, 99),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=15)
@given(records=RECORDS, files=st.integers(1, 3))
def test_sums_are_those_of_the_records_that_hold(
    records: list[UsageRecord], files: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Of records alike in state and time any may hold.
    once = list({(each.engine_id, each.state): each for each in records}.values())
    expected: Counter[tuple[str, str]] = Counter()
    for each in latest(once).values():
        expected[each.tenant, each.tier] += each.completion_tokens
    found = usage_rows(written(tmp_path_factory.mktemp("log"), once, files=files), by=["tenant", "tier"])
    assert {(row["tenant"], row["tier"]): row["completion_tokens"] for row in found} == expected


def usage(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["usage", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_command_prints_a_table_and_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, report = written(tmp_path, LOG), tmp_path / "report.json"
    status, out, _ = usage(capsys, folder, "--by", "tier", "--since", "2025-11-28", "--json", report)
    assert status == 0
    assert "gold" in out
    rows: Sequence[Any] = Report.model_validate_json(report.read_text(), strict=False).rows
    assert [(row["tier"], row["completion_tokens"]) for row in rows] == [("gold", 13), ("standard", 0)]
    assert json.loads(report.read_text())["meta"]["command"] == "usage"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["{folder}", "--by", "colour"], "tenant, tier, replica, day, request"),
        (["{folder}", "--since", "yesterday"], "2026-11-28"),
        (["{folder}/none"], "must be"),
        ([str(CONFIG)], "usage.path"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    folder = written(tmp_path, LOG)
    try:
        status, _, err = usage(capsys, *(each.format(folder=folder) for each in arguments))
    except SystemExit as ended:
        status, err = int(str(ended.code)), capsys.readouterr().err
    assert status == 2
    assert word in err
    assert len(err.strip().splitlines()) == 1


def test_a_configuration_names_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "log"

    async def one_request() -> None:
        journal = Journal(folder, max_file_bytes=1 << 20)
        await journal.add(LOG[2])
        journal.close()

    asyncio.run(one_request())
    file = tmp_path / "config.yaml"
    file.write_text(f"{CONFIG.read_text()}\nusage: {{path: {folder}}}\n")
    status, out, err = usage(capsys, file)
    assert status == 0, err
    assert "acme" in out
