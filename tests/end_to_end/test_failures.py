"""What is killed comes back without help, and no request under way hangs or ends without a word."""

import signal

import psutil
import pytest

from support.deployment import Deployment
from support.in_flight import in_flight

pytestmark = pytest.mark.engine
# Ends come with the death itself or with a few failed probes; the rest is a busy machine.
ENDED_WITHIN_S = 60.0
HUNG_ENDED_WITHIN_S = 180.0


def survive(deployment: Deployment, victim: psutil.Process, number: signal.Signals, *, within_s: float) -> None:
    ready = deployment.output.count("serves on")
    with in_flight(deployment) as requests:
        victim.send_signal(number)
        requests.assert_clean_ends(within_s=within_s)
    deployment.wait_until_answering()
    assert deployment.output.count("serves on") == ready + 1
    assert len(deployment.ranks()) == 2


def test_a_killed_rank(sharded: Deployment) -> None:
    rank = psutil.Process(sharded.ranks()[1]["pid"])
    survive(sharded, rank, signal.SIGKILL, within_s=ENDED_WITHIN_S)
    assert "replica 0 failed: its process ended with status 70" in sharded.output
    counting = {int(file.stem.rsplit("_", 1)[1]) for file in sharded.deployment_dir.glob("metrics-0/*.db")}
    assert counting
    assert counting <= {process.pid for process in sharded.processes()}


@pytest.mark.prove
@pytest.mark.parametrize(
    "words",
    [
        ("ray::Rank",),
        ("sparktier.serving.cli.main", "engine"),
        ("sglang::detokenizer",),
        ("raylet/raylet",),
        ("gcs_server",),
        ("ray.scripts.scripts", "start"),
    ],
    ids=["rank 0", "replica", "detokenizer", "raylet", "gcs", "ray head"],
)
def test_any_other_part_killed(sharded: Deployment, words: tuple[str, ...]) -> None:
    victim = psutil.Process(sharded.ranks()[0]["pid"]) if words == ("ray::Rank",) else sharded.process(*words)
    survive(sharded, victim, signal.SIGKILL, within_s=ENDED_WITHIN_S)


@pytest.mark.prove
def test_a_rank_that_hangs(sharded: Deployment) -> None:
    rank = psutil.Process(sharded.ranks()[1]["pid"])
    survive(sharded, rank, signal.SIGSTOP, within_s=HUNG_ENDED_WITHIN_S)
    assert "health probes in a row went unanswered" in sharded.output
    assert not rank.is_running()
