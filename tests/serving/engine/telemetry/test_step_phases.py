"""Parts of a step on a CPU: each begins and ends where it ran, and lasts what it took."""

import time

import torch

from sparktier.serving.engine.telemetry.step_phases import Phases


def test_parts_stand_one_after_the_other() -> None:
    phases = Phases(torch.device("cpu"))
    with phases.of("draft"):
        time.sleep(0.02)
    time.sleep(0.01)
    with phases.of("verify"):
        pass
    (draft_begin, draft_end), (verify_begin, verify_end) = phases.spans_ms().values()
    assert list(phases.spans_ms()) == ["draft", "verify"]
    assert 0 <= draft_begin < draft_end < verify_begin <= verify_end
    assert verify_begin - draft_end >= 10.0
    assert phases.durations_ms()["draft"] >= 20.0
