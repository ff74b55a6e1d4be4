"""An engine that somebody else kills did not crash: no task is to blame for it (ORCH-3053)."""

import signal
import sys

import pytest

from adapters.child import ChildProcess
from adapters.engine_server import killed_or
from adapters.mock.adapter import MockAdapter
from contracts.engine import EngineSpec

SPEC = EngineSpec("llamacpp", "pool", "pool-0", "mock-model", "", 512, 1, "cpu-dev")


@pytest.mark.req("ORCH-3053", "OC-POOL-3010")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_only_a_signal_that_nobody_here_sent_and_nothing_else_explains_is_a_kill(number: signal.Signals) -> None:
    for status in (-number, 128 + number):
        assert killed_or("exit", status) == "killed"
        assert killed_or("exit", status, asked=True) == "exit"
        assert killed_or("host_oom", status) == "host_oom"
    assert killed_or("exit", -signal.SIGSEGV) == "exit"
    assert killed_or("exit", 1) == "exit"


@pytest.mark.req("ORCH-3053")
async def test_a_process_knows_whether_it_was_asked_to_end() -> None:
    argv = (sys.executable, "-c", "import time; time.sleep(60)")
    for asked in (True, False):
        child = ChildProcess(argv, {})
        if asked:
            await child.stop()
        else:
            child._signal(signal.SIGKILL)
            await child.wait()
        assert child.is_stopping is asked
        assert child.status in (-signal.SIGTERM, -signal.SIGKILL)


@pytest.mark.req("ORCH-3053")
async def test_an_engine_that_is_killed_says_so() -> None:
    adapter = MockAdapter(SPEC)
    await adapter.launch()
    adapter.kill()
    assert (await adapter.wait_exit()).kind == "killed"
    await adapter.close()
