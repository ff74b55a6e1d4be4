"""Being linked to the scheduler: found again and again, with waits between tries, and no try without an end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import structlog

from contracts.messages import Endpoint
from orchestrator.cluster.channel import connect
from orchestrator.cluster.connection import ChannelError, Connection, Role

log = structlog.get_logger(__name__)

#: An actor that is stopped, or being started, answers late or never.
LOCATE_TIMEOUT_S: Final = 5.0
#: A link that broke is missed at once: what ran behind it is given up and started elsewhere.
RECONNECT_MIN_S: Final = 0.05
RECONNECT_MAX_S: Final = 2.0

Locate = Callable[[], Awaitable[Endpoint]]


class Backoff:
    """Waits between tries: each twice the one before, up to a longest one."""

    __slots__ = ("_max_s", "_min_s", "_next_s")

    def __init__(self, min_s: float, max_s: float) -> None:
        self._min_s = self._next_s = min_s
        self._max_s = max_s

    def next_s(self) -> float:
        """How long to wait before the next try."""
        wait_s = self._next_s
        self._next_s = min(self._max_s, 2 * wait_s)
        return wait_s

    def reset(self) -> None:
        """It worked: the next wait is the shortest again."""
        self._next_s = self._min_s

    def held(self, for_s: float) -> None:
        """It worked for so long. What is taken back at once, again and again, is not to be tried for ever as fast."""
        if for_s >= self._max_s:
            self.reset()


class Caller(NamedTuple):
    """Who links up with the scheduler, and the type of what it is told over the link."""

    role: Role
    peer_id: str
    node_id: str
    secret: bytes
    message_type: Any


async def stay_linked(
    caller: Caller,
    locate: Locate,
    on_message: Callable[[Connection, Any], None],
    begun: Callable[[Connection], None],
    ended: Callable[[], None],
) -> None:
    """Have a link to the scheduler, and another when it breaks; returns only by cancellation.

    `begun` is called with each link once it stands, `ended` once that broke.
    """
    backoff = Backoff(RECONNECT_MIN_S, RECONNECT_MAX_S)
    while True:
        with contextlib.suppress(ChannelError):
            await _hold(caller, locate, on_message, begun, ended, backoff)
        await asyncio.sleep(backoff.next_s())


async def _hold(
    caller: Caller,
    locate: Locate,
    on_message: Callable[[Connection, Any], None],
    begun: Callable[[Connection], None],
    ended: Callable[[], None],
    backoff: Backoff,
) -> None:
    """One link from its beginning to its end. Raises ChannelError."""
    loop = asyncio.get_running_loop()
    lost: asyncio.Future[None] = loop.create_future()
    is_up = False

    def closed(_connection: Connection) -> None:
        if not lost.done():
            lost.set_result(None)
        if is_up:
            log.warning("scheduler.lost", role=caller.role, peer_id=caller.peer_id)
            ended()

    endpoint = await _located(locate)
    link = await connect(
        endpoint, caller.node_id, caller.secret, caller.role, caller.peer_id, caller.message_type, on_message, closed
    )
    if link.closed:
        return
    is_up = True
    since_s = loop.time()
    begun(link)
    try:
        await lost
    finally:
        is_up = False  # an end of our own is no loss
    backoff.held(loop.time() - since_s)


async def _located(locate: Locate) -> Endpoint:
    try:
        async with asyncio.timeout(LOCATE_TIMEOUT_S):
            return await locate()
    except TimeoutError:
        raise ChannelError(f"nobody told within {LOCATE_TIMEOUT_S} s where the scheduler listens") from None
