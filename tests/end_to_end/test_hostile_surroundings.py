"""One deployment in surroundings that are all bad at once, and then are harmed; each must leave it serving."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sparktier.serving.demo_model.cache import build_once
from sparktier.serving.demo_model.recipe import DEMO_RECIPE
from sparktier.serving.supervision.processes import held_port
from support.deployment import MODEL, Deployment, wait_until
from support.namespaces import can_mount, with_read_only, with_small_disk

pytestmark = pytest.mark.engine
needs_mounts = pytest.mark.skipif(not can_mount(), reason="this user may not mount")
DISK_BYTES = 16 << 20


def proxies(port: int) -> dict[str, str]:
    """Return every variable that names a proxy, each naming `port`, where nothing listens."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY")
    return {spelt: f"http://127.0.0.1:{port}" for name in names for spelt in (name, name.lower())}


def complete_cache(folder: Path, model: Path) -> Path:
    """Return a cache in which `model` passes for the built demo model."""
    target = folder / "models" / f"demo-moe-v{DEMO_RECIPE.version}"
    build_once(target, DEMO_RECIPE, lambda part: shutil.copytree(model, part, dirs_exist_ok=True) and None)
    target.with_suffix(".lock").unlink()
    return folder


def path_without(program: str, folder: Path) -> str:
    """Return a PATH on which everything is found but `program`."""
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for file in Path(place).iterdir() if Path(place).is_dir() else ():
            link = folder / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(file)
    (folder / program).unlink(missing_ok=True)
    return str(folder)


@pytest.fixture(scope="module")
def besieged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two replicas of one rank behind an IPv6 address, with proxies that don't answer, no git, a read-only cache and a
    small disk for temporary files; the second replica stops for good while it starts."""
    folder = tmp_path_factory.mktemp("hostile")
    ours = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    single = {"replicas.count": 2, "replicas.tensor_parallel": 1, "replicas.expert_parallel": 1}
    cache, temporary = complete_cache(folder / "cache", tiny), folder / "tmp"
    temporary.mkdir()
    places = {"SPARKTIER_CACHE": str(cache), "PATH": path_without("git", folder / "bin"), "TMPDIR": str(temporary)}
    # The paths of Ray's sockets must be short.
    places["RAY_TMPDIR"] = ours.get("TMPDIR", "/tmp")
    wrapper = (*with_small_disk(temporary, DISK_BYTES), *with_read_only(cache)) if can_mount() else ()
    with held_port() as dead:
        env = {**ours, **proxies(dead), **places}
        deployment = Deployment(Path("demo"), folder / "output", env, wrapper, **{"server.host": "::1"}, **single)
        try:
            words = "sparktier.serving.cli.main", "engine", "--replica 1"
            wait_until(lambda: bool(deployment.found(*words)), timeout_s=120, what=lambda: deployment.output)
            deployment.process(*words).send_signal(signal.SIGSTOP)
            deployment.wait_for("ready http=")
            yield deployment
            deployment.stop()
        finally:
            deployment.kill_all()


def answer(deployment: Deployment) -> None:
    body = {"model": MODEL, "prompt": "ba be", "max_tokens": 4}
    found = httpx.post(f"{deployment.url}/v1/completions", json=body, timeout=60.0, trust_env=False)
    assert found.status_code == 200, found.text


def assert_metrics(deployment: Deployment) -> None:
    page = httpx.get(f"{deployment.internal_url}/metrics", timeout=30.0, trust_env=False)
    assert page.status_code == 200
    assert "sparktier_decode_steps_total" in page.text


def test_it_becomes_ready_and_names_an_address_that_works(besieged: Deployment) -> None:
    assert f"ready http=http://[::1]:{besieged.port} grpc=[::1]:" in besieged.output
    answer(besieged)


def test_it_answers_though_one_replica_never_starts(besieged: Deployment) -> None:
    assert "1 of 2 replicas serve" in besieged.output
    assert "replica 1 serves" not in besieged.output
    answer(besieged)


@needs_mounts
def test_its_logs_are_where_it_can_write(besieged: Deployment) -> None:
    assert besieged.deployment_dir.parent.name == "runs"
    assert besieged.deployment_dir.parent.parent.parent.name == "tmp"
    assert (inside(besieged) / "replica-0.log").exists()


@needs_mounts
def test_a_full_disk_ends_nothing(besieged: Deployment) -> None:
    with pytest.raises(OSError, match="No space left"):
        fill(inside(besieged) / "filler")
    for _ in range(5):
        answer(besieged)
    assert_metrics(besieged)
    assert "failed" not in besieged.output


def test_a_removed_deployment_directory_is_made_again_when_a_replica_needs_it(besieged: Deployment) -> None:
    run = inside(besieged)
    shutil.rmtree(run)
    answer(besieged)
    assert_metrics(besieged)
    besieged.process("sparktier.serving.cli.main", "engine", "--replica 0").send_signal(signal.SIGKILL)
    wait_until(lambda: besieged.output.count("replica 0 serves on") == 2, timeout_s=300, what=lambda: besieged.output)
    answer(besieged)
    assert "finds files of this run removed" in besieged.output
    assert (run / "replica-0.log").exists()


def inside(deployment: Deployment) -> Path:
    """The directory of the deployment as it sees it itself, on a disk that is mounted for it alone."""
    return Path(f"/proc/{deployment.pid}/root{deployment.deployment_dir}")


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
