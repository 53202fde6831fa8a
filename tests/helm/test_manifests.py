"""Every example renders, and each object is one that its API takes: no unknown key, and argv that our CLI parses."""

import itertools
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python.chart import lint
from jsonschema import Draft202012Validator

from sparktier.configs.loading.loader import load_settings, parse_overrides
from sparktier.serving.cli.main import _parser
from support.charts.rendered import (
    CHART,
    EXAMPLES,
    ROOT,
    Document,
    changed,
    containers,
    documents,
    pod_templates,
    values_of,
)

KUBERNETES = "1.34"
CRDS = {file.stem: json.loads(file.read_text()) for file in (Path(__file__).parent / "crds").glob("*.json")}


def case(example: Path) -> str:
    return example.stem


EVERY = pytest.mark.parametrize("example", EXAMPLES, ids=case)


@EVERY
def test_each_object_is_one_that_its_api_takes(example: Path) -> None:
    found = documents(values_of(example))
    assert {"ConfigMap", "RayCluster", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= {d["kind"] for d in found}
    for document in found:
        assert not list(problems(document)), document["metadata"]["name"]


def problems(document: Document) -> Iterator[str]:
    """Yield what the API of `document` would refuse or ignore."""
    if document["kind"] not in CRDS:
        yield from _kubernetes_problems(document)
        return
    for error in Draft202012Validator(CRDS[document["kind"]]).iter_errors(document):
        yield f"{error.json_path}: {error.message}"
    for name, template in pod_templates(document):
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "p"}, "template": template}
        yield from (f"{name}: {problem}" for problem in _kubernetes_problems(whole))


def _kubernetes_problems(document: Document) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{error.path}: {error.message}"


def test_what_an_api_does_not_know_is_seen() -> None:
    cluster = next(d for d in documents(values_of(EXAMPLES[0])) if d["kind"] == "RayCluster")
    head = cluster["spec"]["headGroupSpec"]
    for place in (cluster["spec"], head, head["template"]["spec"], head["template"]["spec"]["containers"][0]):
        place["resorces"] = 1
        assert list(problems(cluster))
        del place["resorces"]
    assert not list(problems(cluster))
    cluster["spec"]["rayVersion"] = 2
    assert list(problems(cluster))


@EVERY
def test_the_chart_has_nothing_that_helm_warns_of(example: Path) -> None:
    report = lint(CHART, values_of(example), strict=True)
    assert not report["errors"]
    assert not [message for message in report["messages"] if message["severity"] > 1]


@EVERY
def test_every_command_is_one_that_our_cli_parses(example: Path) -> None:
    found = [argv for document in documents(values_of(example)) for argv in commands(document)]
    assert {argv[0] for argv in found} >= {"engine"}
    for argv in found:
        _parser().parse_args(argv)


def commands(document: Document) -> Iterator[list[str]]:
    """Yield the arguments of each call of `sparktier` in the pods of `document`."""
    for _, template in pod_templates(document):
        for container in containers(template):
            words = [*container.get("command", ()), *container.get("args", ())]
            if words[:1] == ["sparktier"]:
                yield words[1:]
            for line in "\n".join(words).splitlines():
                if "exec sparktier " in line:
                    yield shlex.split(line)[2:]


def test_jobs_that_measure_and_more_gateways_are_what_their_apis_take() -> None:
    values = next(values_of(file) for file in EXAMPLES if file.stem == "one-node")
    for dotted, value in (
        ("jobs.profile", {"enabled": True, "batch": [1, 64]}),
        ("jobs.calibrate", {"enabled": True, "temperatures": [0, 1]}),
        ("files", {"prompts.jsonl": '{"prompt": "Why?"}'}),
        ("gateway.autoscaling", {"enabled": True, "maxReplicas": 8}),
    ):
        values = changed(values, dotted, value)
    found = documents(values)
    assert not [problem for document in found for problem in problems(document)]
    programs = {argv[0]: argv for document in found if document["kind"] == "Job" for argv in commands(document)}
    assert programs.keys() == {"profile", "calibrate"}
    for argv in programs.values():
        _parser().parse_args(argv)
        load_settings(ROOT / "configs" / "demo.yaml", parse_overrides(_overrides(argv)))
    assert programs["profile"].count("--batch") == 2
    scaled = next(document for document in found if document["kind"] == "HorizontalPodAutoscaler")
    target = next(d for d in found if d["metadata"]["name"] == scaled["spec"]["scaleTargetRef"]["name"])
    assert "replicas" not in target["spec"]


def _overrides(argv: list[str]) -> list[str]:
    return [value for option, value in itertools.pairwise(argv) if option == "--set"]


@EVERY
def test_the_configuration_in_a_pod_is_one_that_the_program_takes(example: Path, tmp_path: Path) -> None:
    found = next(d for d in documents(values_of(example)) if d["kind"] == "ConfigMap" and "config.yaml" in d["data"])
    file = tmp_path / "config.yaml"
    file.write_text(found["data"]["config.yaml"])
    settings = load_settings(file)
    wanted = values_of(example)["config"]
    assert {tier_id: tier.name for tier_id, tier in settings.tiers.items()} == {
        tier_id: tier["name"] for tier_id, tier in wanted["tiers"].items()
    }
    assert settings.replicas.tensor_parallel == wanted["replicas"]["tensor_parallel"]
    assert settings.ray.address == "auto"


def test_the_image_has_the_ray_that_the_manifests_name() -> None:
    version = yaml.safe_load((CHART / "values.yaml").read_text())["ray"]["version"]
    assert f"ray=={version} \\" in (ROOT / "requirements.lock").read_text().splitlines()


def test_a_changed_job_has_another_name() -> None:
    values = next(values_of(file) for file in EXAMPLES if file.stem == "one-node")
    before = _job(values)
    for dotted, value in (
        ("config.model.path", "Qwen/Qwen3-235B-A22B-FP8"),
        ("image.tag", "0.1.1"),
        ("models.download.timeoutSeconds", 100),
        ("secrets.hubToken.name", "hub"),
        ("userId", 7),
    ):
        assert _job(changed(values, dotted, value))["metadata"]["name"] != before["metadata"]["name"], dotted
    assert _job(changed(values, "config.tiers.0.promise_tok_s", 20)) == before
    assert not any("chart" in label or "version" in label for label in before["spec"]["template"]["metadata"]["labels"])


def _job(values: Document) -> Document:
    return next(document for document in documents(values) if document["kind"] == "Job")


@EVERY
def test_no_pod_has_rights_that_it_does_not_need(example: Path) -> None:
    for document in documents(values_of(example)):
        for _, template in pod_templates(document):
            spec: dict[str, Any] = template["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True
            controls = template["metadata"]["labels"].get("sparktier/component") == "controller"
            assert spec["automountServiceAccountToken"] is controls
            assert not spec.get("hostNetwork")
            for container in containers(template):
                security = container["securityContext"]
                assert security["readOnlyRootFilesystem"] is True
                assert security["allowPrivilegeEscalation"] is False
                assert security["capabilities"]["drop"] == ["ALL"]
                assert "memory" in container["resources"]["limits"]
