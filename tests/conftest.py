"""Rules of the whole suite: no test leaves a process behind, and a run says at its end what it took."""

import logging

import hypothesis
import psutil
import pytest

from sparktier.serving.supervision.processes import adopt_orphans
from support.engine_starts import STARTED
from support.peak_memory import PeakMemory
from support.processes import Family, described

# Ray's workers notice the end of their cluster within seconds.
_GONE_WITHIN_S = 10.0
# Helpers of a Python process, which end with it.
_OURS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "torch/_inductor/compile_worker")
# The same examples on every run, and no limit of time: the machine is shared.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")
_PEAK = pytest.StashKey[PeakMemory]()


def pytest_configure(config: pytest.Config) -> None:
    """Become the parent of whatever loses its own, so that nothing a test started is out of sight."""
    adopt_orphans()
    config.stash[_PEAK] = PeakMemory()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what the run took of memory, and how many engines it started."""
    terminalreporter.write_line(config.stash[_PEAK].described())
    terminalreporter.write_line(
        f"started: {STARTED['deployment']} deployments, {STARTED['stepped engine']} stepped engines (a process a rank),"
        f" {STARTED['SGLang']} of SGLang alone"
    )


@pytest.fixture(autouse=True)
def _our_loggers_speak() -> None:
    """Undo what a library that configures logging, as SGLang does where a test runs it here, does to our warnings."""
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("sparktier") and isinstance(logger, logging.Logger):
            logger.disabled = False


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the session when a process it started is still alive."""
    left = Family(psutil.Process(), besides=_OURS).gone_within(_GONE_WITHIN_S)
    if not left:
        return
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line("\nthese processes were still alive:", red=True)
        reporter.write_line("\n".join(described(left)))
    for process in left:
        process.kill()
