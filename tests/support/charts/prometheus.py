"""A real Prometheus that reads a trial's gateway, with the chart's rules, and answers its dashboards' queries."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from support.charts.rendered import CHART, documents

Object = dict[str, Any]
ADDRESS = "127.0.0.1:9090"


def installed() -> bool:
    """Whether this machine has Prometheus and promtool (Debian: `apt-get install prometheus`)."""
    return all(map(shutil.which, ("prometheus", "promtool")))


def rules_of(values: Object) -> Object:
    """Return the groups of rules that the chart makes of `values`, in the form of Prometheus' own files."""
    monitored = values | {"monitoring": {"rules": True, "labels": {}}}
    spec = next(found["spec"] for found in documents(monitored) if found["kind"] == "PrometheusRule")
    return {"groups": spec["groups"]}


def dashboard_queries() -> dict[str, str]:
    """Return the queries of the chart's dashboards by the titles of their panels."""
    return {
        panel["title"]: target["expr"]
        for file in (CHART / "dashboards").glob("*.json")
        for panel in json.loads(file.read_text())["panels"]
        for target in panel["targets"]
    }


class Prometheus:
    """It reads `page` (host:port of a gateway's internal listener) once a second."""

    def __init__(self, folder: Path, page: str, values: Object) -> None:
        folder.mkdir()
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules_of(values)))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "gateway", "static_configs": [{"targets": [page]}]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        options = [f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["prometheus", *options, f"--web.listen-address={ADDRESS}"], stdout=log, stderr=subprocess.STDOUT
            )

    def ask(self, query: str) -> list[Object]:
        """Return the series that `query` gives now."""
        answer = httpx.get(f"http://{ADDRESS}/api/v1/query", params={"query": query}, timeout=60).json()
        found: list[Object] = answer["data"]["result"]
        return found

    def wait_for_data(self, timeout_s: float) -> None:
        """Wait until it has read the page some times."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if self.ask("count_over_time(up[1m]) > 3"):
                    return
            except (httpx.HTTPError, KeyError, ValueError):
                pass
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit("Prometheus has read nothing")
            time.sleep(0.5)

    def broken_rules(self) -> list[str]:
        """Return the rules that could not be evaluated."""
        groups = httpx.get(f"http://{ADDRESS}/api/v1/rules", timeout=60).json()["data"]["groups"]
        return [rule["name"] for group in groups for rule in group["rules"] if rule["health"] != "ok"]
