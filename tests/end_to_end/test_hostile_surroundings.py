"""One deployment in surroundings that are all bad at once; each must leave it serving."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sparktier.serving.demo_model.cache import build_once
from sparktier.serving.demo_model.recipe import DEMO_RECIPE
from sparktier.serving.supervision.processes import held_port
from support.deployment import MODEL, Deployment, deployed
from support.namespaces import can_mount, with_read_only

pytestmark = pytest.mark.engine


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
    """A deployment of one rank that listens on IPv6, with proxies that don't answer, no git and a read-only cache."""
    folder = tmp_path_factory.mktemp("hostile")
    ours = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    settings = {"server.host": "::1", "replicas.tensor_parallel": 1, "replicas.expert_parallel": 1}
    cache = complete_cache(folder / "cache", tiny)
    (folder / "tmp").mkdir()
    places = {"SPARKTIER_CACHE": str(cache), "PATH": path_without("git", folder / "bin"), "TMPDIR": str(folder / "tmp")}
    # The paths of Ray's sockets must be short.
    places["RAY_TMPDIR"] = ours.get("TMPDIR", "/tmp")
    wrapper = with_read_only(cache) if can_mount() else ()
    with held_port() as dead:
        env = {**ours, **proxies(dead), **places}
        with deployed(Path("demo"), folder / "output", env, wrapper, **settings) as deployment:
            yield deployment


def test_it_becomes_ready_and_names_an_address_that_works(besieged: Deployment) -> None:
    assert f"ready http=http://[::1]:{besieged.port}\n" in besieged.output
    body = {"model": MODEL, "prompt": "ba be", "max_tokens": 2}
    answer = httpx.post(f"{besieged.url}/v1/completions", json=body, timeout=60.0, trust_env=False)
    assert answer.status_code == 200, answer.text


@pytest.mark.skipif(not can_mount(), reason="this user may not mount")
def test_its_logs_are_where_it_can_write(besieged: Deployment) -> None:
    assert besieged.deployment_dir.parent.name == "runs"
    assert besieged.deployment_dir.parent.parent.parent.name == "tmp"
    assert (besieged.deployment_dir / "replica-0.log").exists()
