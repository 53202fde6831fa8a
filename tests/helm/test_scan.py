"""Scanners find nothing in manifests and Dockerfile but what the chart's README justifies."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.charts.rendered import CHART, EXAMPLES, ROOT, documents, pod_templates, values_of

_JUSTIFIED = re.compile(r"^\| (CKV\w+) \|", re.MULTILINE)


def scanned(folder: Path) -> list[dict[str, Any]]:
    """Return what checkov finds in the examples; pods of a RayCluster are shown to it as pods."""
    for example in EXAMPLES:
        found = documents(values_of(example))
        pods = [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.replace(" ", "-")}, "spec": template["spec"]}
            for document in found
            if document["kind"] == "RayCluster"
            for name, template in pod_templates(document)
        ]
        # `helm install` gives the namespace.
        for document in [*found, *pods]:
            document["metadata"].setdefault("namespace", "serving")
        (folder / example.name).write_text(yaml.safe_dump_all([*found, *pods]))
    command = ["checkov", "--directory", str(folder), "--framework", "kubernetes", "--output", "json", "--compact"]
    told = subprocess.run([*command, "--soft-fail"], capture_output=True, text=True, check=True)
    failed: list[dict[str, Any]] = json.loads(told.stdout)["results"]["failed_checks"]
    return failed


@pytest.mark.skipif(shutil.which("checkov") is None, reason="`make chart-check` installs checkov")
def test_each_finding_in_a_manifest_is_justified(tmp_path: Path) -> None:
    justified = set(_JUSTIFIED.findall((CHART / "README.md").read_text()))
    found = {each["check_id"]: f"{each['check_name']}: {each['resource']}" for each in scanned(tmp_path)}
    assert {name: what for name, what in found.items() if name not in justified} == {}
    assert justified <= found.keys()


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="`make chart-check` installs hadolint")
def test_the_dockerfile_has_no_finding() -> None:
    told = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert told.stdout == ""
