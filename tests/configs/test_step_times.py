"""The file of step times: written and read back, sane, and used by no deployment but the one it was measured on."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from sparktier.configs.errors import ArtifactError
from sparktier.configs.step_times import (
    StepTimeTable,
    TableKey,
    curve_ms,
    read_table,
    reference_table,
    require_own,
    write_table,
)

KEY = TableKey(
    model_sha256="a" * 64,
    draft_sha256="b" * 64,
    device="EPYC",
    dtype="float32",
    tensor_parallel=1,
    expert_parallel=2,
    sglang="0.5.23",
    sparktier="0.1.0",
    row_buckets=(1, 2, 4, 8),
)
TABLE = reference_table("avx2").model_copy(update={"key": KEY})


def broken(**changed: object) -> dict[str, object]:
    return {**TABLE.model_dump(mode="json"), **changed}


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_table(tmp_path / "t.json", TABLE)
    assert read_table(tmp_path / "t.json") == TABLE


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"per_rows_ms": [[1, 2.0], [8, 1.5]]}, r"per_rows_ms must not fall (found 1.5 ms at 8 after 2 ms at 1)"),
        ({"per_requests_ms": [[1, 2.0], [8, 1.5]]}, "per_requests_ms must not fall"),
        ({"prefill_ms": [[1, 2.0], [8, 1.5]]}, "prefill_ms must not fall"),
        ({"draft_ms": {"2": [[1, 40.0], [2, 30.0]]}}, "per_requests_ms with draft_ms.2 must not fall"),
        ({"per_rows_ms": [[4, 1.0], [4, 2.0]]}, "per_rows_ms: counts must rise (found 4 after 4)"),
        ({"per_rows_ms": []}, "per_rows_ms: "),
        ({"per_rows_ms": [[1, float("nan")]]}, "per_rows_ms: "),
        ({"base_ms": 0.0}, "base_ms: "),
        ({"draft_ms": {}}, "draft_ms: "),
        ({"schema_version": 2}, "schema_version: "),
        ({"speed": 1}, "speed: "),
        ({"key": {**KEY.model_dump(), "row_buckets": [4, 2]}}, "row_buckets: counts must rise (found 2 after 4)"),
        ({"key": {**KEY.model_dump(), "model_sha256": "demo"}}, "key: "),
    ],
)
def test_nonsense_is_refused_with_a_sentence(changed: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(broken(**changed)))
    with pytest.raises(ArtifactError, match=re.escape(message)) as refused:
        read_table(path)
    assert str(refused.value).startswith(str(path))
    assert str(refused.value).endswith("Measure it again with `sparktier profile`.")


def test_a_falling_draft_is_no_nonsense_where_each_request_costs_more() -> None:
    table = StepTimeTable.model_validate(broken(draft_ms={"3": [[1, 37.2], [16, 10.2]]}))
    assert curve_ms(table.draft_ms[3], 16) == 10.2
    with pytest.raises(ValidationError):
        StepTimeTable.model_validate(broken(draft_ms={"3": [[1, 200.0], [16, 10.2]]}))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("model_sha256", "c" * 64),
        ("draft_sha256", None),
        ("device", "H100"),
        ("dtype", "bfloat16"),
        ("tensor_parallel", 2),
        ("expert_parallel", 1),
        ("sglang", "0.5.22"),
        ("sparktier", "0.0.9"),
        ("row_buckets", (1, 2, 4)),
    ],
)
def test_a_table_of_another_deployment_or_version_is_refused(name: str, theirs: object) -> None:
    other = TABLE.model_copy(update={"key": KEY.model_copy(update={name: theirs})})
    require_own(TABLE, KEY, "t.json")
    with pytest.raises(ArtifactError, match=rf"t\.json: {name} must be .*, that of this deployment \(found .*\)\. Mea"):
        require_own(other, KEY, "t.json")


def test_a_reference_table_belongs_to_no_deployment() -> None:
    table = reference_table("production")
    with pytest.raises(ArtifactError, match="must be measured on this deployment"):
        require_own(table, table.key, "t.json")


def test_a_reference_table_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ArtifactError, match=r"amx, avx2, moe, production, v4-flash-fitted, .*\(found '../secret'\)"):
        reference_table("../secret")


@pytest.mark.parametrize(
    ("count", "ms"), [(0, 2.0), (2, 2.0), (3, 3.0), (4, 4.0), (6, 5.0), (8, 6.0), (12, 8.0)], ids=str
)
def test_a_curve_is_straight_between_points_and_goes_on_beyond_them(count: int, ms: float) -> None:
    assert curve_ms(((2, 2.0), (4, 4.0), (8, 6.0)), count) == ms


def test_a_curve_that_falls_stays_where_it_ends_and_one_point_is_a_constant() -> None:
    assert curve_ms(((1, 37.2), (16, 10.2)), 32) == 10.2
    assert curve_ms(((4, 3.0),), 1) == curve_ms(((4, 3.0),), 99) == 3.0
