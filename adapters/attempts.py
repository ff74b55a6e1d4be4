"""Attempts in flight on one engine: how many, cancellation, and proof that the engine let go of one.

An attempt counts until the engine has let go of it. After a normal end that is at once; after a broken-off
one the engine is watched until it says so (ORCH-3017). More attempts than the engine runs at once are refused:
a request that waits inside an engine holds up its cancel and everybody behind it (ORCH-3019).
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar

from adapters.errors import engine_error, worker_reset
from contracts.engine import EngineError

CANCEL_WAIT_MS: Final = 3000
_RELEASE_LOOKS_MAX: Final = 240
_LOOK_FIRST_S: Final = 0.02
_LOOK_LAST_S: Final = 0.25


class Closable(Protocol):
    """A response under way. Closing it is how the engine is told that nobody waits any more."""

    def close(self) -> None: ...


T = TypeVar("T")
Response = TypeVar("Response", bound=Closable)


class Attempt:
    """One attempt. `finished` is set when the engine itself has ended it, so that nothing of it is left there."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.response: Closable | None = None
        self.asked = False
        self.finished = False
        self.canceled = False
        self.ended = False
        self.released = asyncio.Event()
        self._step: asyncio.Task[Any] | None = None
        self._opening: Coroutine[Any, Any, Any] | None = None

    async def run(self, step: Coroutine[Any, Any, T]) -> T | None:
        """Await a step that comes before the stream; None when the attempt is canceled meanwhile."""
        if self.canceled:
            step.close()
            self._drop_opening()
            return None
        task: asyncio.Task[T] = asyncio.create_task(step)
        self._step = task
        try:
            return await task
        except asyncio.CancelledError:
            # Canceled through `stop`; unless whoever waits is canceled as well.
            waiting = asyncio.current_task()
            if self.canceled and task.cancelled() and not (waiting is not None and waiting.cancelling()):
                return None
            raise
        finally:
            self._step = None
            self._drop_opening()

    def keep(self, opening: Coroutine[Any, Any, Response]) -> Coroutine[Any, Any, Response]:
        """Await a response and hold on to it, so that it gets closed whatever becomes of the waiting."""
        self._opening = opening
        return self._keep(opening)

    async def _keep(self, opening: Coroutine[Any, Any, Response]) -> Response:
        self.asked = True
        try:
            response = await opening
        except EngineError as error:
            # A refusal was never worked on; a broken connection may have left work behind.
            self.finished = error.info.code != "WORKER_RESET"
            raise
        self.response = response
        return response

    def _drop_opening(self) -> None:
        """A step that is canceled before its first turn never comes to await what it was given."""
        if self._opening is not None and inspect.getcoroutinestate(self._opening) == inspect.CORO_CREATED:
            self._opening.close()
        self._opening = None

    def stop(self) -> None:
        """Break off what is under way. Closing the connection is how the engine is told."""
        self.canceled = True
        if self._step is not None:
            self._step.cancel()
        if self.response is not None:
            self.response.close()


class Attempts:
    """The attempts of one engine process, at most `limit`.

    `alive` says whether the engine still runs: a dead one holds nothing. `is_released` asks it whether it has let
    go of an attempt that was broken off; what it raises counts as no.
    """

    def __init__(
        self, engine: str, limit: int, alive: Callable[[], bool], is_released: Callable[[Attempt], Awaitable[bool]]
    ) -> None:
        self._engine = engine
        self._limit = limit
        self._alive = alive
        self._is_released = is_released
        self._open: dict[str, Attempt] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    @property
    def live(self) -> int:
        """How many attempts the engine was asked for that have not ended, as far as this side is concerned."""
        return sum(attempt.asked and not attempt.ended for attempt in self._open.values())

    def begin(self, key: str) -> Attempt:
        """Raises EngineError (REPLICA_EXHAUSTED) beyond the limit, (INTERNAL) for a key in use."""
        if key in self._open:
            raise engine_error("INTERNAL", f"attempt {key} is running already", engine=self._engine, retriable=False)
        if len(self._open) >= self._limit:
            raise engine_error(
                "REPLICA_EXHAUSTED", f"all {self._limit} slots are taken", engine=self._engine, retriable=True
            )
        self._open[key] = attempt = Attempt(key)
        return attempt

    def end(self, attempt: Attempt) -> None:
        """The attempt's stream is over, regularly or not. Safe to repeat."""
        if attempt.response is not None:
            attempt.response.close()
        if attempt.ended:
            return
        attempt.ended = True
        if attempt.finished or not attempt.asked:
            self._release(attempt)
            return
        watcher = asyncio.create_task(self._watch_release(attempt))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def cancel(self, key: str) -> None:
        """Stop an attempt; return when the engine let go of it, raise WORKER_RESET if that takes too long."""
        attempt = self._open.get(key)
        if attempt is None:
            return
        attempt.stop()
        self.end(attempt)
        try:
            async with asyncio.timeout(CANCEL_WAIT_MS / 1000):
                await attempt.released.wait()
        except TimeoutError:
            message = f"the engine still holds a canceled slot after {CANCEL_WAIT_MS} ms"
            raise worker_reset(message, self._engine) from None

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
        attempt.released.set()

    async def _watch_release(self, attempt: Attempt) -> None:
        """Look until the engine has let go of the attempt, or is gone.

        A request that was broken off before the engine answered it may still be on its way; then one look that
        finds nothing is no proof, and two are asked for.
        """
        looks_needed = 1 if attempt.response is not None else 2
        pause_s = _LOOK_FIRST_S
        for _ in range(_RELEASE_LOOKS_MAX):
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LOOK_LAST_S)
            if not self._alive():
                break
            if await self._look(attempt):
                looks_needed -= 1
                if looks_needed == 0:
                    break
        else:
            return  # never released: it stays taken until the engine is restarted
        self._release(attempt)

    async def _look(self, attempt: Attempt) -> bool:
        try:
            return await self._is_released(attempt)
        except EngineError:
            return False
