"""The experts of one replica lie in two Ray actors, half in each."""

import psutil
import pytest

from support.deployment import Deployment

pytestmark = pytest.mark.engine


def test_each_rank_is_a_ray_actor_with_half_of_the_experts(sharded: Deployment) -> None:
    ranks = sharded.ranks()
    assert [rank["rank"] for rank in ranks] == [0, 1]
    assert [rank["local_experts"] for rank in ranks] == [[0, 3], [4, 7]]
    assert all(rank["experts"] == 8 and rank["moe_layers"] == 4 for rank in ranks)
    assert all(rank["plugin_active"] for rank in ranks)
    names = [psutil.Process(rank["pid"]).cmdline()[0] for rank in ranks]
    assert all(name.startswith("ray::Rank") for name in names)


def test_the_command_shows_it(sharded: Deployment) -> None:
    assert "experts 0-3 of 8 in 4 layers" in sharded.output
    assert "experts 4-7 of 8 in 4 layers" in sharded.output
