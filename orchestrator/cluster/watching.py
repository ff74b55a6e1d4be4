"""Taking up the watch over all followed tasks again, after the scheduler was lost and found."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from contracts.errors import ErrorInfo, OrchError

#: How many tasks are asked for at a time, and how long is waited before those are asked for again that failed.
BATCH_TASKS: Final = 256
AGAIN_S: Final = 1.0

Task = tuple[str, str]


class Watching:
    """Asks for each followed task anew on each link. `on_gone` is told of those that the scheduler knows no more."""

    def __init__(
        self,
        followed: Callable[[], list[Task]],
        watch: Callable[[str, str], Awaitable[object]],
        on_gone: Callable[[str, ErrorInfo], None],
    ) -> None:
        self._followed = followed
        self._watch = watch
        self._on_gone = on_gone
        self._asking: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """There is a new link: none of the tasks is watched on it yet."""
        if self._asking is not None:
            self._asking.cancel()
        left = self._followed()
        self._asking = asyncio.get_running_loop().create_task(self._ask_for(left)) if left else None

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask_for(self, left: list[Task]) -> None:
        """Ask until each task was answered for, or nobody follows it any more; a new link begins anew."""
        while left:
            unanswered: list[Task] = []
            for first in range(0, len(left), BATCH_TASKS):
                batch = left[first : first + BATCH_TASKS]
                answered = await asyncio.gather(*(self._ask(*task) for task in batch))
                unanswered += [task for task, known in zip(batch, answered, strict=True) if not known]
            if unanswered:
                await asyncio.sleep(AGAIN_S)
            followed = set(self._followed())
            left = [task for task in unanswered if task in followed]

    async def _ask(self, task_id: str, tenant: str) -> bool:
        try:
            await self._watch(task_id, tenant)
        except OrchError as refused:
            if refused.info.code != "NOT_FOUND":
                return False
            self._on_gone(task_id, refused.info)
        return True
