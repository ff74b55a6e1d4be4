"""Counting a prompt's tokens before its task is let in (ORCH-3015, OC-CORE-1021)."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Final

import msgspec
from msgspec.structs import replace

from contracts import messages as wire
from contracts.engine import EngineAdapter, EngineError, GenerateRequest
from contracts.scheduling import PromptMeasured
from orchestrator.core.admission import SPECIAL_TOKENS_MAX
from orchestrator.core.submissions import MEASURE_TIMEOUT_NS

#: How many inputs of one task are counted at a time.
COUNTS_MAX: Final = 8
#: The scheduler waits no longer than this for a count.
TIMEOUT_S: Final = MEASURE_TIMEOUT_NS / 1e9

_REQUEST: Final = msgspec.msgpack.Decoder(GenerateRequest)

Spawn = Callable[[Coroutine[None, None, None]], "asyncio.Task[None]"]


class Measurements:
    """The counts under way on one engine, one for each task: one asked for again takes the place of the first."""

    def __init__(self, adapter: EngineAdapter, report: Callable[[PromptMeasured], None], spawn: Spawn) -> None:
        self._adapter = adapter
        self._report = report
        self._spawn = spawn
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, message: wire.Measure) -> None:
        """Count, and report what was found while the scheduler still waits for it."""
        before = self._running.pop(message.task_id, None)
        if before is not None:
            before.cancel()
        counting = self._running[message.task_id] = self._spawn(self._measure(message))
        counting.add_done_callback(lambda done: self._ended(message.task_id, done))

    def stop(self) -> None:
        """Give up what is under way: whoever asked is gone."""
        for counting in list(self._running.values()):
            counting.cancel()

    async def _measure(self, message: wire.Measure) -> None:
        tokens, error = 0, None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                tokens = await count_prompt(self._adapter, _REQUEST.decode(message.payload), message.ctx)
        except EngineError as failed:
            error = failed.info
        except TimeoutError:
            return  # the scheduler has refused the task by now
        self._report(PromptMeasured(message.task_id, message.measurement, tokens, error))

    def _ended(self, task_id: str, counting: "asyncio.Task[None]") -> None:
        if self._running.get(task_id) is counting:
            del self._running[task_id]


async def count_prompt(adapter: EngineAdapter, request: GenerateRequest, ctx: int) -> int:
    """Tokens of the prompt, or of the longest of several inputs, or of one that is over `ctx`. Raises EngineError.

    Inputs with fewer bytes than `ctx` has room for fit whatever their tokens are, so only the others are counted,
    those with most bytes first.
    """
    if request.inputs is None:
        return await adapter.count_tokens(request)
    query_bytes = len((request.prompt or "").encode())
    sizes = [(len(text.encode()), n) for n, text in enumerate(request.inputs)]
    doubtful = sorted(((size, -n) for size, n in sizes if query_bytes + size + SPECIAL_TOKENS_MAX > ctx), reverse=True)
    counts = _Counts(adapter, request, ctx, iter([request.inputs[-n] for _, n in doubtful]))
    counters = [asyncio.create_task(counts.run()) for _ in range(min(COUNTS_MAX, len(doubtful)))]
    try:
        await asyncio.gather(*counters)
    finally:
        for counter in counters:
            counter.cancel()
        await asyncio.gather(*counters, return_exceptions=True)
    return counts.longest


class _Counts:
    """Counts texts, each taken by one of several counters, until one is over `ctx`."""

    def __init__(self, adapter: EngineAdapter, request: GenerateRequest, ctx: int, texts: Iterator[str]) -> None:
        self.longest = 0
        self._adapter = adapter
        self._request = request
        self._ctx = ctx
        self._texts = texts

    async def run(self) -> None:
        """Take texts and count them, until there are none or one is too long."""
        for text in self._texts:
            if self.longest > self._ctx:
                return
            tokens = await self._adapter.count_tokens(replace(self._request, inputs=[text]))
            self.longest = max(self.longest, tokens)
