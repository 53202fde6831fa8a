"""A process goes on when there is no room for its metrics, and its figures are right while there is."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from sparktier.serving.engine.telemetry.metric_files import MetricFile
from support.namespaces import can_mount, with_small_disk

# Fills the disk while a process counts: more names than a first file holds, and a file that is new.
COUNTS = """
import os, sys
from pathlib import Path
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from sparktier.serving.engine.telemetry import metric_files

metric_files.install()
folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
counter = Counter("asked", "asked", ["user"])
counter.labels("first").inc()
with (folder / "filler").open("wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(4096))
    except OSError:
        pass
counter.labels("second").inc()
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
Gauge("busy", "busy").set(1)
for number in range(2000):
    counter.labels(f"user {number}").inc()
print("alive")
"""


@pytest.mark.skipif(not can_mount(), reason="this user may not mount")
def test_a_full_disk_does_not_end_a_process_that_counts(tmp_path: Path) -> None:
    command = [*with_small_disk(tmp_path, 1 << 20), sys.executable, "-c", COUNTS]
    env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'asked_total{user="second"} 1.0' in done.stdout
    assert "alive" in done.stdout
    assert done.stderr.count("No space left on device") == 2
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_gone_does_not_end_it_either(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = MetricFile(str(tmp_path / "gone" / "counter_1.db"))
    file.write_value("a", 2.0, 3.0)  # type: ignore[no-untyped-call]
    assert file.read_value("a") == (2.0, 3.0)  # type: ignore[no-untyped-call]
    assert "No such file" in caplog.text


@pytest.mark.parametrize("state", ["gone", "cut"])
def test_files_that_are_gone_or_cut_cost_their_part_of_a_page_alone(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sparktier.serving.engine.telemetry.admin_routes import _sglang_metrics

    folder = tmp_path / "metrics"
    if state == "cut":
        folder.mkdir()
        (folder / "counter_1.db").touch()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    assert _sglang_metrics() == b""
    assert "missing on /metrics" in caplog.text


def test_values_are_those_of_the_client_s_own_file(tmp_path: Path) -> None:
    path = str(tmp_path / "counter_1.db")
    names = [f"a counter with a rather long name, {number}" for number in range(3000)]
    file = MetricFile(path)
    for number, name in enumerate(names):
        file.write_value(name, float(number), 1.0)  # type: ignore[no-untyped-call]
    read = {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(path)}  # type: ignore[no-untyped-call]
    assert read == {name: float(number) for number, name in enumerate(names)}
    again = MetricFile(path)
    assert again.read_value(names[-1]) == (2999.0, 1.0)  # type: ignore[no-untyped-call]
