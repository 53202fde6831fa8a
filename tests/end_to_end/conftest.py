"""The deployments that the end-to-end tests share. A start takes most of a minute, so there are few.

Tests run sorted by the deployments they use, and each ends with the last test that uses it: few live at once.
"""

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from support.deployment import CLIENT_KEY, THREE_TIERS, Deployment, deployed, write_tiers
from support.inputs.tenants import OTHER_KEY, tenant_settings
from support.oracles.oracle_draft import make_oracle_draft
from support.span_collector import SpanCollector, span_collector
from support.tiny_moe import make_tiny_moe

# The fixtures below that are deployments, in the order in which tests use them up.
SHARED = ("sharded", "pair", "drafting")
_LIVE = pytest.StashKey[dict[str, contextlib.ExitStack]]()


def used_by(item: pytest.Item) -> list[int]:
    """Return the places in SHARED of the deployments that a test uses, directly or through other fixtures."""
    fixtures = getattr(item, "fixturenames", ())
    return [place for place, name in enumerate(SHARED) if name in fixtures]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests of this folder by what they share, those that share nothing last."""

    def key(item: pytest.Item) -> tuple[int, int]:
        used = used_by(item) or [len(SHARED)]
        return used[0], used[-1]

    ours = [place for place, item in enumerate(items) if Path(__file__).parent in item.path.parents]
    for place, item in zip(ours, sorted((items[place] for place in ours), key=key), strict=True):
        items[place] = item


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """End the shared deployments that no later test uses, once the test and its module have let go of them."""
    yield
    live = item.config.stash.get(_LIVE, {})
    later = item.session.items[item.session.items.index(item) + 1 :] if live else []
    needed = {SHARED[place] for other in later for place in used_by(other)}
    for name in live.keys() - needed:
        live.pop(name).close()


@pytest.fixture(scope="session")
def live(request: pytest.FixtureRequest) -> Iterator[dict[str, contextlib.ExitStack]]:
    """The shared deployments that run, each in what ends it; all end with the session at the latest."""
    running = request.config.stash.setdefault(_LIVE, {})
    try:
        yield running
    finally:
        for name in list(running):
            running.pop(name).close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the tiny checkpoint, whose tokens depend on the whole context."""
    return make_tiny_moe(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def predictable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a checkpoint whose tokens mostly follow from the last one: drafts of bigrams are often right."""
    return make_tiny_moe(tmp_path_factory.mktemp("predictable") / "target", context_gain=0.2)


@pytest.fixture(scope="session")
def bigrams(predictable: Path) -> Path:
    """The directory of a drafter that guesses the bigrams of `predictable`, five tokens at a time."""
    return make_oracle_draft(predictable.parent / "draft", predictable, block_tokens=5)


@pytest.fixture(scope="session")
def collector() -> Iterator[SpanCollector]:
    """What collects the spans of `drafting`."""
    with span_collector() as collector:
        yield collector


WIDE = {"model.context_tokens": 8192, "replicas.kv_tokens": 16384, "replicas.chunked_prefill_tokens": 256}
FEATURES = {"training.target_layer_ids": [0, 2]}


@pytest.fixture(scope="session")
def sharded(live: dict[str, contextlib.ExitStack], tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """One replica that decodes plainly, its experts sharded over two ranks, and hands out features two at a time.

    Tests may harm it, and then wait until it answers again.
    """
    features = {**FEATURES, "training.records_at_once": 2, "replicas.chunked_prefill_tokens": 64}
    return _kept(live, "sharded", deployed(tiny, tmp_path_factory.mktemp("sharded") / "output", **features))


@pytest.fixture(scope="session")
def pair(
    live: dict[str, contextlib.ExitStack], predictable: Path, tmp_path_factory: pytest.TempPathFactory
) -> Deployment:
    """Two replicas of one rank each, which holds every expert and decodes plainly."""
    single = {"replicas.count": 2, "replicas.tensor_parallel": 1, "replicas.expert_parallel": 1}
    output = tmp_path_factory.mktemp("pair") / "output"
    return _kept(live, "pair", deployed(predictable, output, **WIDE, **single))


@pytest.fixture(scope="session")
def drafting(
    live: dict[str, contextlib.ExitStack],
    predictable: Path,
    bigrams: Path,
    collector: SpanCollector,
    tmp_path_factory: pytest.TempPathFactory,
) -> Deployment:
    """One replica of two ranks with three tiers, two tenants, features, spans and a log of use.

    Its trees are those of a drafter and of prompt lookup.
    """
    tree = {"speculation.method": "tree", "speculation.draft_path": bigrams, "speculation.tree_rows": 12}
    tree |= {"speculation.prompt_lookup": True}
    folder = tmp_path_factory.mktemp("drafting")
    tenants = tenant_settings(folder, [CLIENT_KEY, OTHER_KEY], ["standard", "gold", "lone"]) | {
        "gateway.priority_tier": "lone"
    }
    kept = {"telemetry.otlp_endpoint": collector.endpoint, "usage.path": folder / "usage"}
    settings = {**WIDE, **tree, **tenants, **FEATURES, **kept}
    config = write_tiers(folder / "config.yaml", THREE_TIERS)
    output = folder / "output"
    return _kept(live, "drafting", deployed(predictable, output, config=config, **settings))


def _kept(
    live: dict[str, contextlib.ExitStack], name: str, deployment: contextlib.AbstractContextManager[Deployment]
) -> Deployment:
    live[name] = contextlib.ExitStack()
    return live[name].enter_context(deployment)
