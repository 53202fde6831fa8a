"""Each alert of the chart fires and stays silent as it should, by Prometheus' own `promtool test rules`."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from support.charts.prometheus import rules_of
from support.charts.rendered import EXAMPLES, values_of

CASES = Path(__file__).with_name("alerts.yaml")
TRIAL = next(example for example in EXAMPLES if example.stem == "cpu-trial")


def promtool(folder: Path, rules: str) -> subprocess.CompletedProcess[str]:
    (folder / "rules.yaml").write_text(rules)
    shutil.copy(CASES, folder / "alerts.yaml")
    command = ["promtool", "test", "rules", str(folder / "alerts.yaml")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's prometheus")
def test_alerts_fire_and_stay_silent(tmp_path: Path) -> None:
    told = promtool(tmp_path, yaml.safe_dump(rules_of(values_of(TRIAL))))
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's prometheus")
@pytest.mark.parametrize("bound", ["0.144", "== 0", "< 1.15", "[10m]"])
def test_another_bound_is_seen(tmp_path: Path, bound: str) -> None:
    text = yaml.safe_dump(rules_of(values_of(TRIAL)), width=1000)
    assert bound in text
    other = {"0.144": "0.99", "== 0": "< 0", "< 1.15": "< 3", "[10m]": "[40m]"}[bound]
    assert promtool(tmp_path, text.replace(bound, other)).returncode != 0


def test_every_alert_has_a_case() -> None:
    cases = {
        (asked["alertname"], bool(asked["exp_alerts"]))
        for case in yaml.safe_load(CASES.read_text())["tests"]
        for asked in case["alert_rule_test"]
    }
    alerts = {rule["alert"] for group in rules_of(values_of(TRIAL))["groups"] for rule in group["rules"]}
    fired = {name for name, fires in cases if fires}
    assert alerts == fired
