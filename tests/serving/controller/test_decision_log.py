"""The log of decisions: a plan is made again from its lines alone, it is rotated, and it is told in words."""

import json
from pathlib import Path

from sparktier.cluster.depth_policy import decide
from sparktier.cluster.policy.judgement import Judge
from sparktier.cluster.policy.policy_types import PolicyConfig, PolicyState, ReplicaInputs
from sparktier.cluster.policy.replica_policy import decide_replica
from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.step_times import StepTimeTable, reference_table
from sparktier.serving.controller.decision_log import DecisionLog
from sparktier.serving.controller.follow import in_words
from support.steering.signal_maker import STANDARD, STRICT, policy_config, received, signals

DAY_MS = 1_795_824_000_000
NAME = "replica-0"


def logged(path: Path, *, ticks: int, file_bytes: int = 1 << 26) -> DecisionLog:
    """A log of a controller that ran for some ticks."""
    log = DecisionLog(path, file_bytes=file_bytes)
    config, state, times = policy_config(), PolicyState(epoch=3), StepTimeModel(reference_table("avx2"))
    log.start(3, config, {NAME: times})
    for number in range(ticks):
        at_ms = DAY_MS + 1000 * number
        users = {STANDARD: 12 if number % 40 > 20 else 1, STRICT: 1}
        got = {NAME: received(signals(NAME, seq=number + 1, at_ms=at_ms, running=users, rung=2))}
        outcome = decide(got, config, {NAME: times}, state, now_ms=60_000 + 1000 * number, at_ms=at_ms)
        state = outcome.state
        for decision in outcome.decisions:
            log.decision(decision, outcome.plan)
    log.state(DAY_MS, NAME, "steered", "plan 4 is in force")
    log.close()
    return log


def test_a_plan_is_made_again_from_the_log_alone(tmp_path: Path) -> None:
    logged(tmp_path / "log", ticks=60)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    start = next(line for line in lines if line["kind"] == "start")
    config = PolicyConfig.model_validate_json(json.dumps(start["config"]))
    times = StepTimeModel(StepTimeTable.model_validate(start["step_times"]))
    decisions = [line["decision"] for line in lines if line["kind"] == "decision"]
    assert len(decisions) >= 3
    for decision in decisions:
        inputs = ReplicaInputs.model_validate_json(json.dumps(decision["inputs"]))
        found = decide_replica(inputs, config, times, Judge(config, left=1000))
        assert found is not None
        assert found.memory.planned is not None
        assert found.memory.planned.model_dump(mode="json") == decision["to"]


def test_lines_are_numbered_and_told_after_a_number(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", ticks=3)
    numbers = [json.loads(line)["seq"] for line in log.after(0)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [json.loads(line)["seq"] for line in log.after(numbers[-2])] == [numbers[-1]]
    assert log.after(numbers[-1]) == []
    assert len(log.after(10**6)) == len(numbers), "the number is of an earlier process"


def test_files_are_rotated(tmp_path: Path) -> None:
    logged(tmp_path / "log", ticks=120, file_bytes=1 << 13)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files[:2] == ["log", "log.1"]
    assert len(files) <= 5
    assert all(path.stat().st_size < 1 << 14 for path in tmp_path.iterdir())


def test_it_is_told_in_words(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", ticks=3)
    words = [text for line in log.after(0) for text in in_words(json.loads(line))]
    assert words[0] == "epoch 3 begins, with step times"
    assert "users 0: " in words[1]
    assert words[-1].endswith("replica-0 is steered: plan 4 is in force")
