"""SIGTERM for an actor: end in order, within a bound, whichever thread its event loop runs in.

Python's signal handlers run in the main thread, and may be set there only. Ray runs an actor's methods in a thread of
its own, and Serve makes its replicas there. `faulthandler` is the one module whose handler writes to a file from the
signal itself and can be set from any thread: what it writes here goes to a pipe, and the event loop reads it.
"""

import asyncio
import contextlib
import faulthandler
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

log = structlog.get_logger(__name__)

#: Under what `ray stop` (16 s) and Kubernetes (30 s) wait before they kill.
END_MAX_S: Final = 14.0
#: Not 0: to Ray an actor that ends by itself is to stay away.
STATUS: Final = 1
_READ_BYTES: Final = 65536

#: The task that ends the process, kept from being collected.
_ending: list[asyncio.Task[None]] = []


def when_terminated(end: Callable[[], Awaitable[None]]) -> None:
    """Have SIGTERM run `end` on the running loop, for `END_MAX_S` at most, and then end the process.

    Ray starts the actor again. For one actor of a process; further signals change nothing.
    """
    loop = asyncio.get_running_loop()
    told, tell = os.pipe()
    os.set_blocking(told, False)
    os.set_blocking(tell, False)

    def terminated() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(told, _READ_BYTES)
        if not _ending:
            _ending.append(loop.create_task(_end(end)))

    loop.add_reader(told, terminated)
    faulthandler.register(signal.SIGTERM, file=tell, all_threads=False)


async def _end(end: Callable[[], Awaitable[None]]) -> None:
    log.warning("process.terminated", pid=os.getpid())
    try:
        async with asyncio.timeout(END_MAX_S):
            await end()
    except Exception:
        log.exception("process.not_ended_in_order")
    finally:
        os._exit(STATUS)
