"""Who reaches which port: the table in the chart's README is that of the manifests, and secrets are in none."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from support.charts.rendered import CHART, EXAMPLES, Document, containers, documents, pod_templates, render, values_of

README = (CHART / "README.md").read_text()
COMPONENTS = ("engine", "gateway", "controller", "test")
# Ports that a process takes as it starts, or that the Ray operator adds.
ANY_PORT = 23456
FREE_PORTS = ("Ray", "SGLang", "torch", "NCCL")


def table() -> list[tuple[str, str, str, str]]:
    """Return the rows (pod, port, bind address, who may reach it) of the README's table of ports."""
    rows = re.findall(r"^\| (engine|gateway|controller) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", README, flags=re.M)
    return [tuple(cell.strip() for cell in row) for row in rows]  # type: ignore[misc]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_every_port_of_a_pod_is_in_the_table_with_who_reaches_it(example: Any) -> None:
    values = values_of(example)
    found = documents(values)
    listed = {(pod, int(number)): who for pod, port, _, who in table() if (number := port.split()[0]).isdecimal()}
    for document in found:
        for _, template in pod_templates(document):
            labels = template["metadata"].get("labels", {})
            for container in containers(template):
                for port in container.get("ports", ()):
                    key = (labels["sparktier/component"], port["containerPort"])
                    absent = {"none"} if values.get("networkPolicy", {}).get("monitoring") else {"none", "monitoring"}
                    assert reached_by(found, labels, key[1], values) == set(listed[key].split(", ")) - absent, key


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_ports_that_are_taken_at_start_are_reached_by_the_replica_alone(example: Any) -> None:
    values = values_of(example)
    found = documents(values)
    free = [(port, who) for pod, port, _, who in table() if pod == "engine" and not port.split()[0].isdecimal()]
    assert {port.split()[0] for port, _ in free} >= set(FREE_PORTS)
    assert {who for _, who in free} == {"its replica"}
    for document in found:
        for name, template in pod_templates(document):
            labels = template["metadata"]["labels"]
            expected = {"its replica"} if labels["sparktier/component"] == "engine" else set()
            assert reached_by(found, labels, ANY_PORT, values) == expected, name


def reached_by(found: list[Document], labels: dict[str, str], port: int, values: Document) -> set[str]:
    """Return who may reach `port` of a pod, by the NetworkPolicies."""
    who: set[str] = set()
    policies = [d["spec"] for d in found if d["kind"] == "NetworkPolicy" and selects(d["spec"]["podSelector"], labels)]
    assert policies, "a pod without a policy is open to all"
    for rule in (rule for policy in policies for rule in policy.get("ingress", ())):
        if "ports" in rule and port not in {each["port"] for each in rule["ports"]}:
            continue
        who |= set(peers(rule.get("from"), labels, values))
    return who


def peers(sources: list[Document] | None, labels: dict[str, str], values: Document) -> Iterator[str]:
    policy = values.get("networkPolicy", {})
    if sources is None:
        yield "clients"
    for source in sources or ():
        if source in policy.get("clients", ()):
            yield "clients"
        elif source in policy.get("monitoring", ()):
            yield "monitoring"
        else:
            chosen = source["podSelector"]["matchLabels"]
            component = chosen["sparktier/component"]
            if component == "engine":
                assert chosen["sparktier/replica"] == labels["sparktier/replica"]
            if component != "test":
                yield "its replica" if component == "engine" else component


def selects(selector: Document, labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_secrets_are_named_and_never_shown(example: Any) -> None:
    whole = "\n".join(render(values_of(example)).values())
    assert "kind: Secret" not in whole
    for document in documents(values_of(example)):
        for _, template in pod_templates(document):
            for container in containers(template):
                secret = [
                    entry["name"]
                    for entry in container.get("env", ())
                    if re.search(r"PEPPER|TOKEN|PASSWORD|SECRET|_KEY$", entry["name"]) and "value" in entry
                ]
                assert not secret


def test_only_the_controller_may_ask_kubernetes_and_its_lease_alone() -> None:
    found = documents(values_of(EXAMPLES[0]))
    roles = [document for document in found if document["kind"] in ("Role", "ClusterRole")]
    lease = next(document for document in found if document["kind"] == "Lease")["metadata"]["name"]
    assert [role["rules"] for role in roles] == [
        [
            {
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "resourceNames": [lease],
                "verbs": ["get", "update"],
            }
        ]
    ]
    config = next(d for d in found if d["kind"] == "ConfigMap" and "config.yaml" in d["data"])["data"]["config.yaml"]
    assert yaml.safe_load(config)["controller"]["kubernetes_lease"] == f"serving/{lease}"
