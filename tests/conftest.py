"""Rules of the whole suite: no test leaves a process behind."""

import os
import uuid

import pytest

from support.processes import described, gone_within

_MARK = "SPARKTIER_TEST_SESSION"
_SESSION = uuid.uuid4().hex
# Ray's workers notice the end of their cluster within seconds.
_GONE_WITHIN_S = 10.0


def pytest_configure(config: pytest.Config) -> None:
    """Mark every process that is started from now on."""
    os.environ[_MARK] = _SESSION


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the session when a process it started is still alive."""
    if left := gone_within(_MARK, _SESSION, _GONE_WITHIN_S):
        lines = "\n".join(described(left))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"these processes are still alive:\n{lines}", red=True)
        for process in left:
            process.kill()
