"""What all adapters of servers share, where it goes wrong."""

import asyncio
import contextlib

import pytest

from adapters.attempts import Attempt, Attempts
from adapters.errors import engine_error, worker_reset
from adapters.http_client import EngineClient
from adapters.llamacpp import LlamaCppAdapter
from contracts.engine import EngineError, EngineSpec


async def never(attempt: Attempt) -> bool:
    del attempt
    return False


@pytest.mark.req("ORCH-3017")
async def test_a_canceled_task_is_canceled_though_its_attempt_is_stopped_too() -> None:
    """A stop cancels who waits and stops the attempt: a return would look like an end."""
    attempt = Attempt("a/1")
    waiting = asyncio.create_task(attempt.run(asyncio.sleep(60)))
    await asyncio.sleep(0)
    waiting.cancel()
    attempt.stop()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_an_attempt_that_asked_for_nothing_explains_no_work() -> None:
    attempts = Attempts("e", 2, lambda: True, never)
    first, second = attempts.begin("a/1"), attempts.begin("b/1")
    first.asked = True
    assert attempts.live == 1
    second.asked = True
    assert attempts.live == 2
    first.finished = True
    attempts.end(first)
    assert attempts.live == 1
    await attempts.close()


class FailsWhenAsked(LlamaCppAdapter):
    """Looks ready, and then fails at the first question."""

    error: EngineError
    kill = False

    async def _look_around(self, client: EngineClient) -> None:
        del client
        if self.kill:
            assert self._child is not None
            await self._child.stop()
        raise self.error


@pytest.mark.req("ORCH-3039", "ORCH-3010")
@pytest.mark.parametrize("kill", [False, True])
async def test_a_failure_after_the_health_check_is_a_failed_launch(spec: EngineSpec, kill: bool) -> None:
    adapter = FailsWhenAsked(spec)
    adapter.error, adapter.kill = worker_reset("the engine broke off", "llamacpp"), kill
    with pytest.raises(EngineError) as raised:
        await adapter.launch()
    assert raised.value.info.code == "POOL_UNREADY"
    assert ("ended while starting" in raised.value.info.message) is kill
    assert raised.value.kind == ("exit" if kill else "launch")
    assert adapter.pid is None


async def test_a_refusal_after_the_health_check_is_told_as_it_is(spec: EngineSpec) -> None:
    adapter = FailsWhenAsked(spec)
    adapter.error = engine_error("INVALID_PARAMS", "another model", engine="llamacpp", retriable=False, kind="model")
    with pytest.raises(EngineError, match="another model") as raised:
        await adapter.launch()
    assert raised.value.kind == "model"


async def test_a_close_that_was_canceled_can_be_repeated(spec: EngineSpec) -> None:
    adapter = LlamaCppAdapter(spec)
    await adapter.launch()
    pid, folder = adapter.pid, adapter._folder
    closing = asyncio.create_task(adapter.close())
    await asyncio.sleep(0)
    closing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    await adapter.close()
    assert pid is not None
    assert adapter.pid is None
    assert folder is not None
    assert not folder.exists()
