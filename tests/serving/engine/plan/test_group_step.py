"""What attention groups agree on: the lowest rung, the most rows of a group, the same on every rank."""

import pytest

from sparktier.configs.plan_keys import Rung
from sparktier.serving.engine.plan.group_step import Wish, agreed


@pytest.mark.parametrize(
    ("wishes", "requests", "expected"),
    [
        ([Wish(3, 20), Wish(3, 4)], [5, 1], (Rung.TREE, 20, 5, (True, True))),
        ([Wish(3, 20), Wish(1, 4)], [5, 1], (Rung.CHAIN_SHORT, 20, 5, (True, True))),
        # A latched group holds all others at rung 0 while it decodes, an idle one holds none.
        ([Wish(3, 20), Wish(0, 2)], [5, 2], (Rung.OFF, 20, 5, (True, True))),
        ([Wish(), Wish(2, 6)], [0, 2], (Rung.CHAIN, 6, 2, (False, True))),
        # Every request has its anchor's row, whatever a group says.
        ([Wish(2, 1), Wish(2, 3)], [4, 3], (Rung.CHAIN, 4, 4, (True, True))),
    ],
)
def test_the_lowest_rung_and_the_most_rows(
    wishes: list[Wish], requests: list[int], expected: tuple[Rung, int, int, tuple[bool, ...]]
) -> None:
    assert agreed(wishes, requests, unit=1) == expected


def test_rows_are_shared_out_evenly_among_a_groups_ranks() -> None:
    assert agreed([Wish(2, 13), Wish(2, 3)], [4, 3], unit=4).rows == 16


def test_an_idle_group_brings_no_rows() -> None:
    assert agreed([Wish(2, 6), Wish()], [2, 0], unit=1).pass_rows == [6, 0]
