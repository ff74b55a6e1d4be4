"""Attempts in flight on one engine: slots, cancellation, and proof that a slot is free again.

An attempt holds its slot until the engine has let go of it. After a normal end that is at once;
after a broken-off one the slot list is watched until it says so (ORCH-3017).
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from adapters.child import ChildProcess
from adapters.errors import engine_error
from adapters.llamacpp.client import LlamaClient
from adapters.llamacpp.exchange import CompletionStream
from adapters.llamacpp.protocol import ENGINE, worker_reset
from adapters.llamacpp.slots import SlotTable
from contracts.engine import EngineError

CANCEL_WAIT_MS: Final = 3000
_RELEASE_LOOKS_MAX: Final = 240
_LOOK_FIRST_S: Final = 0.02
_LOOK_LAST_S: Final = 0.25

T = TypeVar("T")


class Attempt:
    """One attempt. `finished` is set when the engine itself has ended it, so that its slot is free."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.slot: int | None = None
        self.response: CompletionStream | None = None
        self.finished = False
        self.canceled = False
        self.ended = False
        self.released = asyncio.Event()
        self._step: asyncio.Task[Any] | None = None

    async def run(self, step: Coroutine[Any, Any, T]) -> T | None:
        """Await a step that comes before the stream; None when the attempt is canceled meanwhile."""
        if self.canceled:
            step.close()
            return None
        task: asyncio.Task[T] = asyncio.create_task(step)
        self._step = task
        try:
            return await task
        except asyncio.CancelledError:
            if self.canceled and task.cancelled():
                return None
            raise
        finally:
            self._step = None

    async def keep(self, opening: Coroutine[Any, Any, CompletionStream]) -> CompletionStream:
        """Await a response and hold on to it, so that it gets closed whatever becomes of the waiting."""
        try:
            self.response = await opening
        except EngineError as error:
            # A refusal never got into a slot; a broken connection may have left work in one.
            self.finished = error.info.code != "WORKER_RESET"
            raise
        return self.response

    def stop(self) -> None:
        """Break off what is under way. Closing the connection is how the engine is told."""
        self.canceled = True
        if self._step is not None:
            self._step.cancel()
        if self.response is not None:
            self.response.close()


class Attempts:
    """The attempts of one engine process, at most one per slot."""

    def __init__(self, client: LlamaClient, child: ChildProcess, slots: int) -> None:
        self._client = client
        self._child = child
        self._slots = SlotTable(slots)
        self._slots_total = slots
        self._open: dict[str, Attempt] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    def begin(self, key: str) -> Attempt:
        """Raises EngineError (REPLICA_EXHAUSTED) beyond the engine's slots, (INTERNAL) for a key in use."""
        if key in self._open:
            raise engine_error("INTERNAL", f"attempt {key} is running already", engine=ENGINE, retriable=False)
        if len(self._open) >= self._slots_total:
            raise engine_error(
                "REPLICA_EXHAUSTED", f"all {self._slots_total} slots are taken", engine=ENGINE, retriable=True
            )
        self._open[key] = attempt = Attempt(key)
        return attempt

    def take_slot(self, attempt: Attempt, prompt: str | list[int]) -> int:
        """Give the attempt its slot. There is one: attempts are counted in `begin`."""
        slot = self._slots.take(prompt if isinstance(prompt, str) else "")
        assert slot is not None, "more attempts than slots"
        attempt.slot = slot
        return slot

    def end(self, attempt: Attempt) -> None:
        """The attempt's stream is over, regularly or not. Safe to repeat."""
        if attempt.response is not None:
            attempt.response.close()
        if attempt.ended:
            return
        attempt.ended = True
        if attempt.finished or attempt.slot is None:
            self._release(attempt)
            return
        watcher = asyncio.create_task(self._watch_release(attempt))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def cancel(self, key: str) -> None:
        """Stop an attempt; return when its slot is free, raise WORKER_RESET if that takes too long."""
        attempt = self._open.get(key)
        if attempt is None:
            return
        attempt.stop()
        self.end(attempt)
        try:
            async with asyncio.timeout(CANCEL_WAIT_MS / 1000):
                await attempt.released.wait()
        except TimeoutError:
            raise worker_reset(f"the engine still holds a canceled slot after {CANCEL_WAIT_MS} ms") from None

    async def close(self) -> None:
        """The engine is gone: nothing is in flight any more."""
        for watcher in list(self._watchers):
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for attempt in list(self._open.values()):
            attempt.stop()
            attempt.ended = True
            self._release(attempt)

    def _release(self, attempt: Attempt) -> None:
        del self._open[attempt.key]
        if attempt.slot is not None:
            self._slots.give_back(attempt.slot)
        attempt.released.set()

    async def _watch_release(self, attempt: Attempt) -> None:
        """Look at the engine's slots until the attempt's is idle, or the engine is gone.

        A request that was broken off before the engine answered it may still be on its way into
        the slot; then one idle look is no proof, and two are asked for.
        """
        looks_needed = 1 if attempt.response is not None else 2
        pause_s = _LOOK_FIRST_S
        for _ in range(_RELEASE_LOOKS_MAX):
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LOOK_LAST_S)
            if self._child.status is not None:
                break
            if await self._is_idle(attempt.slot):
                looks_needed -= 1
                if looks_needed == 0:
                    break
        else:
            return  # never released: the slot stays taken until the engine is restarted
        self._release(attempt)

    async def _is_idle(self, slot: int | None) -> bool:
        try:
            slots = await self._client.slots()
        except EngineError:
            return False
        return not any(entry.id == slot and entry.is_processing for entry in slots)
