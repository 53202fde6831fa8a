"""Runs what the chart makes of an example as processes on this machine, and asks it for a chat.

python -m support.charts.trial EXAMPLE FOLDER, as root of a namespace of users with a network of its own. Prints what it
saw as JSON. It does what the kubelet does: volumes, environment, commands, probes and the end of a pod.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from sparktier.serving.clients.replica_keys import new_keys_file
from sparktier.serving.demo_model.cache import default_cache_dir
from support.charts.lease_server import write_account
from support.charts.pod_root import PodProcess
from support.charts.prometheus import Prometheus, dashboard_queries, installed
from support.charts.rendered import NAMESPACE, RELEASE, ROOT, documents, pod_templates, values_of
from support.inputs.tenants import tenant_settings

CLIENT_KEY = "sk-trial"
# What KubeRay hands to the container of a head with these rayStartParams.
RAY_START = "ulimit -n 65536; ray start --head --block --dashboard-agent-listen-port=52365 --metrics-export-port=8080"
TOKEN = "trial-token-trial-token-trial-token"
API_PORT = 6443
# Where a pod finds `ray`, which an image has beside `sparktier`.
BIN = "/opt/trial-bin"
# Where a pod finds its service account's token.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

Object = dict[str, Any]


class Pods:
    """The pods of a release, each a process group with its log in `folder`."""

    def __init__(self, objects: list[Object], folder: Path) -> None:
        self._folder = folder
        self._objects = {(found["kind"], found["metadata"]["name"]): found for found in objects}
        self._templates = {name: (kind, template) for (kind, name), template in _templates(objects)}
        self._hosts = [
            name + domain
            for kind, name in self._objects
            if kind == "Service"
            for domain in ("", f".{NAMESPACE}", f".{NAMESPACE}.svc")
        ]
        self._secret = folder / "secret"
        self._secret.mkdir()
        new_keys_file(self._secret)
        tenant_settings(self._secret, [CLIENT_KEY], ["standard", "interactive"])
        self._bin = folder / "bin"
        self._bin.mkdir()
        (self._bin / "ray").write_text(f'#!/bin/sh\nexec {sys.executable} -m ray.scripts.scripts "$@"\n')
        (self._bin / "ray").chmod(0o755)
        self._account = folder / "account"
        self._account.mkdir()
        write_account(self._account, NAMESPACE)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start_api(self, lease: str) -> None:
        """Start the API server of `lease`."""
        command = ["-m", "support.charts.lease_server", str(self._account), lease, str(API_PORT)]
        with self.log("api").open("wb") as log:
            self.running["api"] = subprocess.Popen([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT)

    def api_log(self) -> list[str]:
        """Return what the API server was asked for."""
        return (self._folder / "api.log").read_text().splitlines()

    def secrets(self) -> list[str]:
        """Return what no log may have."""
        keys = json.loads((self._secret / "keys.json").read_text())
        return [*keys.values(), CLIENT_KEY, TOKEN, (self._secret / "pepper").read_text()]

    def names(self) -> list[str]:
        """Return the pods of the release, without Jobs and tests."""
        return [name for name, (kind, _) in self._templates.items() if kind in ("RayCluster", "Deployment")]

    def start(self, name: str) -> None:
        """Start the first container of pod `name`."""
        kind, template = self._templates[name]
        container = template["spec"]["containers"][0]
        folder = self._folder / name.replace(" ", "-")
        folder.mkdir()
        (folder / "pod.root").mkdir()
        env = {"PATH": f"{BIN}:{Path(sys.executable).parent}:{os.environ['PATH']}", "LANG": "C.UTF-8"} | {
            each["name"]: each["value"] if "value" in each else self._secret_value(each)
            for each in container.get("env", ())
        }
        volumes = self._volumes(template["spec"], container, folder)
        if kind == "RayCluster":
            env |= self._of_kuberay(name.split()[0])
        if template["spec"]["automountServiceAccountToken"]:
            env |= {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(API_PORT)}
            volumes[str(ACCOUNT.resolve())] = (str(self._account), False)
        pod = PodProcess(
            command=[*container["command"], *container.get("args", ())],
            env=env,
            volumes=volumes,
            hosts=self._hosts,
            user_id=template["spec"]["securityContext"]["runAsUser"],
        )
        pod.write(folder / "pod.json")
        with self.log(name).open("wb") as log:
            self.running[name] = subprocess.Popen(
                ["unshare", "--mount", sys.executable, "-m", "support.charts.pod_root", str(folder / "pod.json")],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        """Return where pod `name` writes."""
        return self._folder / f"{name.replace(' ', '-')}.log"

    def wait_until_ready(self, name: str, timeout_s: float) -> None:
        """Wait until the readiness probe of pod `name` passes."""
        container = self._templates[name][1]["spec"]["containers"][0]
        probe = container["readinessProbe"]["httpGet"]
        port = next(each["containerPort"] for each in container["ports"] if each["name"] == probe["port"])
        deadline = time.monotonic() + timeout_s
        while True:
            for other, process in self.running.items():
                if process.poll() is not None:
                    raise SystemExit(f"{other} ended:\n{self.log(other).read_text()[-6000:]}")
            try:
                if httpx.get(f"http://127.0.0.1:{port}{probe['path']}", timeout=30).is_success:
                    return
            except httpx.HTTPError:
                pass
            if time.monotonic() > deadline:
                raise SystemExit(f"{name} is not ready:\n{self.log(name).read_text()[-6000:]}")
            time.sleep(0.5)

    def _volumes(self, spec: Object, container: Object, folder: Path) -> dict[str, tuple[str, bool]]:
        sources = {volume["name"]: self._source(volume, folder) for volume in spec["volumes"]}
        # The checkout is part of the image, also where a volume would hide it.
        return {str(ROOT): (str(ROOT), False), BIN: (str(self._bin), False)} | {
            mount["mountPath"]: (str(sources[mount["name"]]), not mount.get("readOnly", False))
            for mount in container["volumeMounts"]
        }

    def _source(self, volume: Object, folder: Path) -> Path:
        source = folder / "volumes" / volume["name"]
        source.mkdir(parents=True)
        if "configMap" in volume:
            for name, text in self._objects["ConfigMap", volume["configMap"]["name"]]["data"].items():
                (source / name).write_text(text)
        elif "secret" in volume:
            for item in volume["secret"]["items"]:
                shutil.copy(self._secret / item["key"], source / item["path"])
        elif volume["name"] == "cache":
            # The demo model that this machine has made already; a pod would make it on its first start.
            (source / "sparktier").symlink_to(default_cache_dir())
        return source

    def _secret_value(self, variable: Mapping[str, Any]) -> str:
        return (self._secret / variable["valueFrom"]["secretKeyRef"]["key"]).read_text()

    def _of_kuberay(self, cluster: str) -> dict[str, str]:
        parameters = self._objects["RayCluster", cluster]["spec"]["headGroupSpec"]["rayStartParams"]
        options = " ".join(f"--{name}={value}" for name, value in parameters.items())
        return {
            "KUBERAY_GEN_RAY_START_CMD": f"{RAY_START} --num-cpus=2 --memory=12884901888 {options}",
            "RAY_ADDRESS": "127.0.0.1:6379",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
        }


def _templates(objects: list[Object]) -> list[tuple[tuple[str, str], Object]]:
    return [((found["kind"], name), template) for found in objects for name, template in pod_templates(found)]


def chat(tier: str = "interactive") -> Object:
    """Return what the gateway answers, with the tier that it served."""
    messages = [{"role": "user", "content": "Name a colour."}]
    body = {"model": "sparktier-demo", "messages": messages, "max_tokens": 12, "temperature": 0}
    shown = {"Authorization": f"Bearer {CLIENT_KEY}", "x-sparktier-tier": tier}
    answer = httpx.post("http://127.0.0.1:8000/v1/chat/completions", json=body, headers=shown, timeout=300)
    return {"status": answer.status_code, "tier": answer.headers.get("x-sparktier-tier"), "body": answer.json()}


def watched(pods: Pods, folder: Path, values: Object) -> Object:
    """Return how many series each query of the dashboards gives after a load, and the rules that fail."""
    prometheus = Prometheus(folder / "prometheus", "127.0.0.1:9000", values)
    pods.running["prometheus"] = prometheus.process
    prometheus.wait_for_data(timeout_s=300)
    for _ in range(3):
        for tier in ("standard", "interactive"):
            chat(tier=tier)
        prometheus.wait_for_data(timeout_s=300)
        time.sleep(3)  # some readings of the page between requests
    queries = dashboard_queries()
    series = {title: len(prometheus.ask(query)) for title, query in queries.items()}
    return {"series": series, "broken_rules": prometheus.broken_rules()}


def main(example: Path, folder: Path) -> None:
    """Start every pod, ask, run the test of `helm test`, and end them."""
    values = values_of(example)
    objects = documents(values)
    pods = Pods(objects, folder)
    seen: Object = {"pods": pods.names()}
    try:
        pods.start_api(f"{NAMESPACE}/{RELEASE}")
        for name in seen["pods"]:
            pods.start(name)
        for name in seen["pods"]:
            pods.wait_until_ready(name, timeout_s=float(values["engine"]["startSeconds"]))
        seen["chat"] = chat()
        if installed():
            seen |= watched(pods, folder, values)
        seen["unkeyed"] = httpx.post("http://127.0.0.1:8000/v1/chat/completions", json={}, timeout=60).status_code
        admin = json.loads((folder / "secret" / "keys.json").read_text())["admin"]
        shown = {"Authorization": f"Bearer {admin}"}
        signals = httpx.get("http://127.0.0.1:30000/sparktier/signals", headers=shown, timeout=60).json()
        seen["signals"] = signals
        seen["api"] = sorted(set(pods.api_log()))
        test = next(found for found in objects if found["kind"] == "Pod")
        command = test["spec"]["containers"][0]["command"]
        hosted = [part.replace(f"//{RELEASE}:", "//127.0.0.1:") for part in command]
        seen["helm_test"] = subprocess.run(hosted, check=False, capture_output=True).returncode
    finally:
        seen["ends"] = {}
        for name in reversed(list(pods.running)):
            process = pods.running[name]
            process.terminate()
            try:
                seen["ends"][name] = process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                seen["ends"][name] = "killed"
    seen["logs"] = {name: pods.log(name).read_text()[-20000:] for name in seen["pods"]}
    seen["secrets"] = pods.secrets()
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
