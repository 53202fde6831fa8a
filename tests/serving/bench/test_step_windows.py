"""`sparktier profile` on an engine whose clock adds a known table: noise and a drift of two leave it within 5%."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sglang.srt.speculative.dspark_components.dspark_sps import load_sps_table_from_path

from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.errors import ConfigError, ReplicaError
from sparktier.configs.loading.loader import settings_from
from sparktier.configs.plan_keys import Rung
from sparktier.configs.settings.settings import Settings
from sparktier.configs.step_times import read_table
from sparktier.serving.bench import profile_command
from sparktier.serving.bench.counters import Totals
from sparktier.serving.bench.measured_replica import MeasuredReplica
from sparktier.serving.bench.step_time_fit import fit_table, predicted_ms
from sparktier.serving.bench.step_windows import Measured, ProfileLoad, measure
from sparktier.serving.clients.replica import ReplicaAnswer
from support.simulated_engine import ROWS, TABLE, SimulatedEngine

RUNGS = [Rung.OFF, Rung.CHAIN_SHORT, Rung.CHAIN, Rung.TREE]


def load(**changed: Any) -> ProfileLoad:
    return ProfileLoad(
        **{"sizes": (1, 4, 16), "repeats": 4, "window_s": 4.0, "seed": 3, "context_tokens": 2048, **changed}
    )


def profiled(engine: SimulatedEngine, **changed: Any) -> Measured:
    return measure(engine, RUNGS, load(**changed), clock=engine.clock, log=lambda _: None)


def test_a_profile_recovers_the_table_of_an_engine_that_becomes_twice_as_slow() -> None:
    engine = SimulatedEngine(noise=0.03, run_s=300.0)
    measured = profiled(engine)
    fit = fit_table(measured.windows, measured.prefill_ms, key=TABLE.key, source="test")
    ratios = [predicted_ms(fit.table, window) / predicted_ms(TABLE, window) for window in measured.windows]
    assert np.abs(np.array(ratios) / np.median(ratios) - 1.0).max() < 0.05
    assert fit.drift_frac.max() / fit.drift_frac.min() > 1.7
    assert fit.table.error_frac_p50 is not None
    assert fit.table.error_frac_p50 < 0.05


def test_every_rung_is_measured_at_every_size_between_references() -> None:
    engine = SimulatedEngine()
    windows = profiled(engine, repeats=2).windows
    cells = [(window.rung, window.requests, window.rows) for window in windows if not window.is_reference]
    expected = [(rung, size, size * rows) for size in (1, 4, 16) for rung, rows in ROWS.items()]
    assert sorted(cells) == sorted(2 * [*expected, *((3, size, 2 * size) for size in (1, 4, 16))])
    references = [place for place, window in enumerate(windows) if window.is_reference]
    assert references == list(range(0, len(windows), 6))
    assert {(windows[place].rung, windows[place].requests) for place in references} == {(0, 1.0)}
    assert [window.at_s for window in windows] == sorted(window.at_s for window in windows)


def test_contexts_differ_between_passes_and_nothing_is_left_in_flight() -> None:
    engine = SimulatedEngine()
    windows = profiled(engine, repeats=2).windows
    first, second = windows[: len(windows) // 2], windows[len(windows) // 2 :]
    assert max(window.context_tokens / window.requests for window in first) < min(
        window.context_tokens / window.requests for window in second if not window.is_reference
    )
    assert engine.running == 0


def test_prefill_is_timed_by_the_tokens_of_the_prompt() -> None:
    prefill = profiled(SimulatedEngine(), repeats=1).prefill_ms
    assert [ms for _, ms in prefill] == pytest.approx([20.0 + tokens / 2 for tokens, _ in prefill])
    assert len(prefill) == 3  # the fourth length does not fit 2,048 tokens beside an answer


def test_an_engine_that_runs_fewer_requests_at_once_is_refused() -> None:
    with pytest.raises(ReplicaError, match=r"must run 16 requests at once \(found 8\.0 in a step\)"):
        profiled(SimulatedEngine(most_running=8), repeats=1)


class AnswersLate(SimulatedEngine):
    """Lets so many readings of its counters fail."""

    failures: int = 0

    def totals(self) -> Totals:
        self.failures -= 1
        if self.failures >= 0:
            raise ReplicaError("Every rank must answer between two steps.")
        return super().totals()


@pytest.mark.parametrize(("failures", "is_measured"), [(2, True), (3, False)])
def test_a_reading_is_tried_again_but_not_for_ever(failures: int, is_measured: bool) -> None:
    engine = AnswersLate()
    engine.failures = failures
    if is_measured:
        assert profiled(engine, repeats=1, sizes=(1, 2)).windows
    else:
        with pytest.raises(ReplicaError, match="Every rank must answer"):
            profiled(engine, repeats=1, sizes=(1, 2))


class StuckByBudget(SimulatedEngine):
    """Makes no step under a budget of rows."""

    def sleep(self, seconds: float) -> None:
        if self.budget:
            self.now_s += seconds
        else:
            super().sleep(seconds)


def test_windows_with_hardly_a_step_are_refused() -> None:
    with pytest.raises(ReplicaError, match=r"must hold 8 decode steps \(found 0 in 80 s\)"):
        profiled(StuckByBudget(), repeats=1)


def tree_settings() -> Settings:
    return settings_from({"model": {"path": "org/name"}, "speculation": {"method": "tree", "draft_path": "org/draft"}})


def profile(tmp_path: Path, *, sizes: tuple[int, ...] = (1, 4), repeats: int = 2) -> int:
    return profile_command.run(
        tree_settings(),
        config=tmp_path / "none.yaml",
        overrides=(),
        sizes=sizes,
        repeats=repeats,
        window_s=2.0,
        seed=0,
        out=tmp_path / "t.json",
        report=tmp_path / "windows.json",
    )


def test_the_command_writes_the_table_sglangs_form_a_plot_and_every_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SimulatedEngine()

    @contextmanager
    def deployed(config: Path, overrides: object) -> Iterator[SimulatedEngine]:
        yield engine

    monkeypatch.setattr(profile_command, "deployed", deployed)
    monkeypatch.setattr(profile_command, "resolve", lambda settings, progress: settings)
    monkeypatch.setattr(profile_command, "table_key", lambda resolved: TABLE.key)
    monkeypatch.setattr(profile_command, "_WALL", engine.clock)
    assert profile(tmp_path) == 0
    table = read_table(tmp_path / "t.json")
    assert table.source.startswith("sparktier profile, ")
    sps = load_sps_table_from_path(str(tmp_path / "t.sps.json"))
    ours = StepTimeModel(table).step_ms(rung=3, requests=4, rows=np.array([20]))[0]
    assert sps.step_time(num_reqs=4, budget=16) * 1000.0 == pytest.approx(ours)
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "windows.json").read_text())["rows"]) == 2 * 2 * 6 + 1


def test_one_batch_size_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--batch: must be given two different sizes or more"):
        profile(tmp_path, sizes=(4,))


def test_a_rank_that_does_not_answer_in_time_ends_a_measurement_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its page is no page of metrics then."""
    replica = MeasuredReplica("http://127.0.0.1:1", key="key")
    monkeypatch.setattr(replica, "_ask", lambda *_: ReplicaAnswer(503, b'{"error": "Every rank must answer"}'))
    with pytest.raises(ReplicaError, match=r"must tell its counters \(found HTTP 503: .*Every rank must answer"):
        replica.totals()


def test_groups_share_out_requests_and_fill_up_to_each_other() -> None:
    class TwoGroups(SimulatedEngine):
        """Each runs every other request in as many steps, and a row of padding in each."""

        def totals(self) -> Totals:
            whole = super().totals()
            parts = {part: 2 * took_ms for part, took_ms in whole.part_ms.items()}
            return Totals(2 * whole.steps, whole.rounds, whole.rows, whole.tokens, parts, 2 * whole.steps)

    asked: dict[str, Any] = {"sizes": (4, 16), "repeats": 1}
    alone, windows = profiled(SimulatedEngine(), **asked).windows, profiled(TwoGroups(), groups=2, **asked).windows
    assert [window.requests for window in windows] == pytest.approx([window.requests / 2 for window in alone])
    whole = [window for window in windows if not window.is_reference and window.rung == 0]
    assert [window.rows for window in whole] == pytest.approx([window.requests + 1 for window in whole])
