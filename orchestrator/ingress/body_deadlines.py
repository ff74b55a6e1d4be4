"""How long bodies may take to arrive, watched for all of them together.

`asyncio.timeout` costs each request a timer, which is a third of what parsing a submission does. Bodies are here
nearly always when they are asked for, so one timer looks at those that are not, four times in a body's time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

LOOKS: Final = 4

T = TypeVar("T")


class BodyTooSlow(Exception):
    """A request body did not arrive in time."""


class BodyDeadlines:
    """Cancels what waits for a body for more than `timeout_ms`, and at most a quarter over it."""

    def __init__(self, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms
        #: Since when each task waits, in seconds of the loop's clock; the oldest first.
        self._waiting: dict[asyncio.Task[object], float] = {}
        self._late: set[asyncio.Task[object]] = set()
        self._is_looking = False

    async def within(self, read: Callable[[], Awaitable[T]]) -> T:
        """What `read` returns. Raises BodyTooSlow."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._waiting[task] = loop.time()
        if not self._is_looking:
            self._is_looking = True
            loop.call_later(self.timeout_ms / 1000 / LOOKS, self._look, loop)
        try:
            return await read()
        except asyncio.CancelledError:
            # As in asyncio.timeout: a cancellation that came from elsewhere too goes on.
            if task in self._late and task.uncancel() == 0:
                raise BodyTooSlow from None
            raise
        finally:
            self._waiting.pop(task, None)
            self._late.discard(task)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        too_old = loop.time() - self.timeout_ms / 1000
        late = []
        for task, since in self._waiting.items():
            if since > too_old:
                break
            late.append(task)
        for task in late:
            del self._waiting[task]
            self._late.add(task)
            task.cancel()
        self._is_looking = bool(self._waiting)
        if self._is_looking:
            loop.call_later(self.timeout_ms / 1000 / LOOKS, self._look, loop)
