"""The lines shown of a failed process's log are those that say why it failed."""

from pathlib import Path

from sparktier.serving.supervision.failure_reason import reason, reason_in

# Shortened from what a rank that asked for too many log-probabilities left behind.
CRASH = """\
/env/sglang/awq.py:53: UserWarning: Only CUDA, HIP and XPU support AWQ currently.
  warnings.warn(f"Only CUDA, HIP and XPU support AWQ currently.")
2026-11-22 02:15:21,877 INFO Available plugins for group sglang.srt.plugins:
\x1b[36m(Rank pid=1234)\x1b[0m [2026-11-22 02:15:10 TP0] Scheduler failed: Traceback (most recent call last):
\x1b[36m(Rank pid=1234)\x1b[0m   File "/env/sglang/logprob_processor.py", line 106, in get_top_logprobs_raw
\x1b[36m(Rank pid=1234)\x1b[0m     values, indices = logprobs.topk(max_k, dim=-1)
\x1b[36m(Rank pid=1234)\x1b[0m RuntimeError: selected index k out of range
\x1b[36m(Rank pid=1235)\x1b[0m RuntimeError: selected index k out of range [repeated 2x across cluster]
[2026-11-22 02:15:10] Ray scheduler actor terminated with error: ray::Rank.run_event_loop() (pid=1234)
RuntimeError: selected index k out of range
[2026-11-22 02:15:10] A rank ended; this replica stops so that a whole one can take its place.
"""


def test_the_error_is_told_once_and_the_noise_not() -> None:
    assert reason(CRASH) == ["RuntimeError: selected index k out of range"]


# And what one left that was killed.
KILLED = """\
[2026-11-22 03:11:46] Ray scheduler actor terminated with error: The actor died unexpectedly before finishing this task.
\tclass_name: Rank
\tip: 192.0.2.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR
[2026-11-22 03:11:46] A rank ended; this replica stops so that a whole one can take its place.
"""


def test_a_killed_rank_is_told_as_one() -> None:
    assert reason(KILLED) == ["The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"]


def test_our_own_last_line_is_told() -> None:
    log = "x\nsparktier.configs.errors.ReplicaError: inner\nreplica 0: replicas: needs 4 free GPUs. Add nodes.\n"
    assert reason(log)[-1] == "replica 0: replicas: needs 4 free GPUs. Add nodes."


def test_without_an_error_the_end_of_the_log_is_told() -> None:
    log = "\n".join(f"[2026-11-22 02:15:1{n}] step {n}" for n in range(9))
    assert reason(log) == ["step 5", "step 6", "step 7", "step 8"]


def test_a_log_without_lines_tells_nothing() -> None:
    assert reason("\n \n") == []


def test_a_line_without_end_is_cut() -> None:
    assert len(reason("ValueError: " + "x" * 100_000)[0]) == 250


def test_a_log_of_days_is_read_from_near_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.write(b"RuntimeError: long ago\n")
        file.truncate(1 << 40)
        file.seek(1 << 40)
        file.write(b"\nRuntimeError: just now\n")
    assert reason_in(log, start=0) == ["RuntimeError: just now", f"(all of it in {log})"]


def test_what_came_before_the_start_is_not_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("RuntimeError: ältere\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("RuntimeError: new\n")
    assert reason_in(log, start=start)[:-1] == ["RuntimeError: new"]


def test_a_log_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    (line,) = reason_in(tmp_path / "log", start=7)
    assert "No such file" in line
