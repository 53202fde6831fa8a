"""The image: pinned, without root, and with the programs that manifests call."""

import re
from pathlib import Path

from support.charts.rendered import EXAMPLES, ROOT, containers, documents, pod_templates, values_of

DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = re.split(r"^(?=FROM )", DOCKERFILE, flags=re.MULTILINE)[1:]
# Programs that every base image of Debian has.
OF_THE_BASE = {"/bin/bash", "/bin/sleep", "/bin/true"}
OF_THE_ENVIRONMENT = {"hf", "sparktier"}
INSTALLED = {"wget"}


def test_the_base_is_one_version() -> None:
    assert re.search(r"^ARG BASE=python:3\.11\.\d+-slim-bookworm$", DOCKERFILE, flags=re.MULTILINE)
    named = {stage.split()[1] for stage in STAGES}
    assert named == {"${BASE}", "common"}


def test_packages_are_checked_by_hash() -> None:
    installs = re.findall(r"pip install.*?-r \S+\.lock", DOCKERFILE, flags=re.DOTALL)
    assert len(installs) == 2
    assert all("--require-hashes" in install for install in installs)


def test_every_target_ends_without_root() -> None:
    users = {stage.split()[3]: re.findall(r"^USER (\S+)$", stage, flags=re.MULTILINE) for stage in STAGES}
    assert users["common"][-1] == users["gpu"][-1] == "10001:10001"
    assert users["cpu"] == []


def test_the_image_has_what_manifests_call() -> None:
    for example in EXAMPLES:
        for document in documents(values_of(example)):
            for _, template in pod_templates(document):
                called = {container["command"][0] for container in containers(template) if "command" in container}
                assert called <= OF_THE_BASE | OF_THE_ENVIRONMENT | INSTALLED
    common = next(stage for stage in STAGES if stage.split()[3] == "common")
    assert set(re.findall(r"apt-get install [^&]*", common)[0].split()) >= INSTALLED
    assert (ROOT / ".venv" / "bin" / "sparktier").is_file()
    environment = Path((ROOT / ".venv" / ".stamp").read_text().split()[0]) / "bin"
    assert all((environment / name).is_file() for name in ("hf", "ray"))
