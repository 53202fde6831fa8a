"""The deployments that the end-to-end tests share. A start takes most of a minute, so there are few."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.deployment import Deployment, deployed
from support.tiny_moe import make_tiny_moe


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the tiny checkpoint."""
    return make_tiny_moe(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def sharded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One replica whose experts are sharded over two ranks. Tests may harm it, and then wait until it answers again."""
    with deployed(tiny, tmp_path_factory.mktemp("sharded") / "output") as deployment:
        yield deployment


@pytest.fixture(scope="session")
def pair(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two replicas of one rank each, which holds every expert."""
    single = {"replicas.count": 2, "replicas.tensor_parallel": 1, "replicas.expert_parallel": 1}
    with deployed(tiny, tmp_path_factory.mktemp("pair") / "output", **single) as deployment:
        yield deployment
