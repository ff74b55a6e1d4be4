"""Prints what the conformance run found, engine by engine, at the end of the session."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from adapters.testing.conformance.report import Result, table
from adapters.testing.conformance.subject import Bench
from tests.conformance.plan import subject

RESULTS: pytest.StashKey[list[Result]] = pytest.StashKey()


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> list[Result]:
    """Where cases put what became of them."""
    return pytestconfig.stash.setdefault(RESULTS, [])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """The subject that a module's cases share; it is launched when the first of them needs it."""
    one = Bench(subject(request.param))
    yield one
    await one.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(RESULTS, [])
    if found:
        terminalreporter.section("conformance")
        terminalreporter.write_line(table(found))
