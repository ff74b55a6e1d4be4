"""The reports of all engines, printed together when the run ends."""

import pytest

from adapters.testing.determinism import Report, summary, totals

REPORTS = pytest.StashKey[list[Report]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORTS] = []


@pytest.fixture
def reports(pytestconfig: pytest.Config) -> list[Report]:
    """Append a report to have it printed."""
    return pytestconfig.stash[REPORTS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = config.stash[REPORTS]
    if reports:
        terminalreporter.section("determinism")
        for report in reports:
            terminalreporter.write_line(summary(report))
        terminalreporter.write_line(totals(reports))
