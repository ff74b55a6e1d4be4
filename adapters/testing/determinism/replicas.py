"""One of the two replicas of a run: a real engine process behind its adapter."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from adapters.testing.determinism.tasks import Task
from adapters.testing.determinism.transcript import Recording, Transcript
from contracts.engine import AdapterFactory, EngineError, EngineProperties, EngineSpec


class Replica:
    """Launched by `start`. `properties` are those of the last launch, `launch_s` is how long it took."""

    def __init__(self, name: str, factory: AdapterFactory, spec: EngineSpec, timeout_s: float) -> None:
        self.name = name
        self.spec = spec
        self.adapter = factory(spec)
        self.properties = EngineProperties(engine_version="", model_digest="", slots=1, ctx=0)
        self.launch_s = 0.0
        self._timeout_s = timeout_s
        self._keys = itertools.count()

    async def start(self) -> None:
        """Launch, or attach. Raises EngineError."""
        begin = time.monotonic()
        await self.adapter.launch()
        self.properties = await self.adapter.properties()
        self.launch_s = time.monotonic() - begin

    async def restart(self) -> None:
        """End the process, however it is, and start another one. Raises EngineError."""
        await self.adapter.close()
        await self.start()

    async def close(self) -> None:
        await self.adapter.close()

    @property
    def pid(self) -> int | None:
        """The engine's process, where it is this side's and the adapter tells it."""
        pid = getattr(self.adapter, "pid", None)
        return pid if isinstance(pid, int) else None

    def kill(self) -> None:
        """SIGKILL to the engine's process; it must have one."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)

    def key(self) -> str:
        """A new attempt's key."""
        return f"{self.name}-{next(self._keys)}"

    async def run(self, task: Task, recording: Recording | None = None) -> Transcript:
        """One task. Raises EngineError, and TimeoutError for one that does not end."""
        async with asyncio.timeout(self._timeout_s):
            return await (recording or Recording()).run(self.adapter, self.key(), task.request)

    async def run_all(
        self,
        tasks: Sequence[Task],
        width: int,
        on_result: Callable[[Task, Transcript], None],
        on_error: Callable[[Task, str], None],
    ) -> None:
        """All tasks, `width` at a time and each as soon as another one ends."""
        waiting = iter(tasks)

        async def work() -> None:
            for task in waiting:
                try:
                    on_result(task, await self.run(task))
                except EngineError as error:
                    on_error(task, str(error))
                except TimeoutError:
                    on_error(task, f"it did not end within {self._timeout_s:g} s")

        await asyncio.gather(*(work() for _ in range(width)))


async def all_of(*steps: Coroutine[Any, Any, None]) -> None:
    """Do these at the same time, all of them to their end. Raises the first error, once nothing is under way."""
    for outcome in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
