"""rows_per_rank against a count by hand: what a rank sends to experts when every request runs."""

import pytest

from sparktier.configs.loading.loader import settings_from
from sparktier.configs.rules.device import rows_per_rank


@pytest.mark.parametrize(
    ("ranks", "groups", "requests", "block", "rows"),
    [
        (8, 8, 1024, None, 128),  # one rank a group, one row a request
        (8, 1, 64, None, 8),
        (8, 1, 65, None, 9),  # the last rank's share is rounded up
        (16, 8, 1024, 5, 384),
        (2, 1, None, None, None),
    ],
)
def test_rows_are_those_of_a_group_over_its_ranks(
    ranks: int, groups: int, requests: int | None, block: int | None, rows: int | None
) -> None:
    data = {
        "model": {"path": "a/b"},
        "replicas": {
            "tensor_parallel": ranks,
            "attention_data_parallel": groups,
            "max_running_requests": requests,
        },
        "speculation": {"method": "none" if block is None else "dspark_native", "block_tokens": block},
    }
    assert rows_per_rank(settings_from(data)) == rows


def test_rows_are_unknown_while_the_draft_checkpoint_decides() -> None:
    data = {
        "model": {"path": "a/b"},
        "replicas": {"max_running_requests": 4},
        "speculation": {"method": "dspark_native"},
    }
    assert rows_per_rank(settings_from(data)) is None
