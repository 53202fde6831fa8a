"""The command line: exit codes, one line per problem on stderr, and never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sparktier.serving.cli import doctor as doctor_command
from sparktier.serving.cli.main import main
from support.inputs.malformed_configs import MALFORMED

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
DEMO = str(CONFIGS / "demo.yaml")
PLANNED = str(CONFIGS / "deployments" / "qwen3-235b-a22b-8xh200.yaml")


def complaints(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def exit_code(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as ended:
        return int(str(ended.code))


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("up", name) for name in MALFORMED),
        *((command, "wrong keys and broken rules together") for command in ("engine", "doctor", "doctor --plan")),
    ],
)
def test_a_malformed_file_ends_a_command_with_a_line_for_each_problem(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, paths = MALFORMED[name]
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    rest = ["--replica", "0", "--port", "30000"] if command == "engine" else []
    assert exit_code([*command.split(), str(file), *rest]) == 2
    lines = complaints(capsys)
    assert sorted(line.split(": ")[2] for line in lines) == sorted(paths)
    assert all(line.startswith(f"sparktier: {file}: ") for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["up"],
        ["up", "nowhere.yaml"],
        ["up", DEMO, "--wings"],
        ["up", DEMO, "--set", "server.port"],
        ["up", DEMO, "--set", "server.port=eighty"],
        ["up", DEMO, "--set", "server.prot=80"],
        ["engine", DEMO],
        ["engine", DEMO, "--replica", "0"],
        ["engine", DEMO, "--replica", "-1", "--port", "30000"],
        ["engine", DEMO, "--replica", "0", "--port", "70000"],
        ["engine", DEMO, "--replica", "0", "--port", "x"],
        ["doctor", DEMO, "--json"],
        ["doctor", "--plan", DEMO, "--set", "model.path=./nowhere"],
        ["doctor", "--plan", DEMO, "--set", "model.path=nobody/unheard-of"],
        ["doctor", "--plan", DEMO, "--model-config", "nowhere.json"],
        ["doctor", "--plan", DEMO, "--model-config", DEMO],
    ],
)
def test_bad_arguments_end_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(arguments) == 2
    (line,) = complaints(capsys)
    assert line.startswith("sparktier: ")


def test_an_unwritable_report_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(CONFIGS / "deployments" / "qwen3-235b-a22b-8xh200.yaml")
    assert exit_code(["doctor", "--plan", file, "--json", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--json" in line


@pytest.mark.parametrize("command", ["up", "engine", "doctor"])
def test_help_has_an_example_that_parses_as_far_as_its_file(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_code([command, "--help"]) == 0
    example = capsys.readouterr().out.split("example:\n")[1].split()
    assert example[:2] == ["sparktier", command]
    file = next(word for word in example if word.endswith(".yaml"))
    assert (CONFIGS.parent / file).is_file()
    # With a wrong value at the end, the file is read and the rest of the example accepted.
    monkeypatch.chdir(CONFIGS.parent)
    assert exit_code([*example[1:], "--set", "server.port=0"]) == 2
    assert "server.port: must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError(28, "No space left on device", "/data/a"), "/data/a: must be usable (found No space left on device)"),
        (OSError("odd"), "this machine: must be usable (found odd)"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: OSError, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(doctor_command, "examine", refused)
    assert exit_code(["doctor"]) == 2
    (line,) = complaints(capsys)
    assert line.startswith(f"sparktier: {found}")


def test_a_reader_that_has_gone_leaves_no_traceback() -> None:
    command = [sys.executable, "-m", "sparktier.serving.cli.main", "doctor", "--plan", PLANNED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_the_installed_command_leaves_no_traceback(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: {path: demo\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "sparktier.serving.cli.main", "up", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "must be YAML" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_plan_writes_the_rows_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "plan.json"
    file = str(CONFIGS / "deployments" / "qwen3-235b-a22b-8xh200.yaml")
    assert exit_code(["doctor", "--plan", file, "--json", str(report)]) == 0
    data = json.loads(report.read_text())
    assert set(data["meta"]) == {"command", "version", "commit", "machine", "load_average", "seed", "started_at"}
    values = {row["name"]: row["value"] for row in data["rows"]}
    assert values["ep_size"] == 8
    assert "ep_size" in capsys.readouterr().out


def test_doctor_plan_of_what_cannot_run_fails(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(CONFIGS / "deployments" / "qwen3-235b-a22b-8xh200.yaml")
    assert exit_code(["doctor", "--plan", file, "--set", "replicas.accelerator=A100-80GB"]) == 0
    small = ["--set", "replicas.tensor_parallel=4", "--set", "replicas.expert_parallel=4"]
    assert exit_code(["doctor", "--plan", file, "--set", "replicas.accelerator=A100-80GB", *small]) == 1
    assert "a rank lacks" in capsys.readouterr().out
