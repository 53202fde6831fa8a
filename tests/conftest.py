"""Rules of the whole suite: no test leaves a process behind."""

import psutil
import pytest

from sparktier.serving.supervision.processes import adopt_orphans
from support.processes import Family, described

# Ray's workers notice the end of their cluster within seconds.
_GONE_WITHIN_S = 10.0
# Helpers of a Python process, which end with it.
_OURS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "torch/_inductor/compile_worker")


def pytest_configure(config: pytest.Config) -> None:
    """Become the parent of whatever loses its own, so that nothing a test started is out of sight."""
    adopt_orphans()


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
