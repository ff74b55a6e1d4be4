"""One Ray cluster of several raylets with fake GPUs for all pool tests, made by `ray start`, served by `llorch up`.

Real: Ray, its raylets and actors, sockets, processes, SIGKILL, `nvidia-ml-py`. Fake, and named so: the GPUs
(a scripted libnvidia-ml) and the engines (they say so in `engine_version`).
"""

from collections.abc import Iterator

import pytest

from tests.pools.pool_cluster import PoolCluster
from tests.pools.table import TABLE


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolCluster]:
    """Head without GPUs, four nodes with two each, in two zones; nothing of it may be left at the end."""
    running = PoolCluster(tmp_path_factory.mktemp("pools"))
    try:
        running.start()
        yield running
        running.down()
    finally:
        running.kill_all()
    assert running.processes() == [], "processes were left behind"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was killed when, and how long it took to be back."""
    if TABLE:
        terminalreporter.section("pools: recovery")
        for line in TABLE.lines():
            terminalreporter.write_line(line)
