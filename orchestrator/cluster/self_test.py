"""What an engine must show before its replica is Ready: tokens, a cancel, and its metrics (ORCH-3049)."""

import asyncio
import contextlib
import time
from typing import Final

from contracts.engine import EngineAdapter, EngineError, EngineSpec, Finish, GenerateRequest
from contracts.errors import ErrorInfo

TIMEOUT_S: Final = 60.0
DECODE: Final = GenerateRequest(task_id="self-test", max_tokens=8, seed=1, prompt="The capital of France is")
#: Longer than it is let run: it is canceled after its first token.
CANCELED: Final = GenerateRequest(task_id="self-test-cancel", max_tokens=64, seed=1, prompt="Once upon a time")


async def self_test(adapter: EngineAdapter, spec: EngineSpec) -> int:
    """Readiness is generated tokens, not a health page; returns the decode time per token in ns.

    Raises EngineError (POOL_UNREADY).
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            token_ns = await _decode(adapter, spec)
            await _cancel(adapter, spec)
            await _metrics(adapter, spec)
    except TimeoutError:
        raise _failed(spec, f"did not end within {TIMEOUT_S:.0f} s") from None
    return token_ns


async def _decode(adapter: EngineAdapter, spec: EngineSpec) -> int:
    times_ns, finished = [], False
    async for item in adapter.generate("self-test", DECODE):
        if isinstance(item, Finish):
            finished = True
        else:
            times_ns.append(time.monotonic_ns())
    if not times_ns or not finished:
        raise _failed(spec, f"generated {len(times_ns)} pieces of text and {'an' if finished else 'no'} end")
    return max(1, (times_ns[-1] - times_ns[0]) // max(1, len(times_ns) - 1))


async def _cancel(adapter: EngineAdapter, spec: EngineSpec) -> None:
    """The slot must be free when `cancel` returns; it raises EngineError when the engine does not let go of it."""
    async with contextlib.aclosing(adapter.generate("self-test-cancel", CANCELED)) as generated:  # type: ignore[type-var]
        async for _ in generated:
            break
        else:
            raise _failed(spec, "generated nothing to cancel")
        await adapter.cancel("self-test-cancel")


async def _metrics(adapter: EngineAdapter, spec: EngineSpec) -> None:
    metrics = await adapter.metrics()
    if metrics.requests_processing is None and metrics.tokens_out_total is None:
        raise _failed(spec, "found no metrics: the engine tells neither of requests nor of tokens")


def _failed(spec: EngineSpec, what: str) -> EngineError:
    info = ErrorInfo("POOL_UNREADY", f"the self-test {what}", engine=spec.engine, pool_id=spec.pool_id, retriable=True)
    return EngineError(info)
