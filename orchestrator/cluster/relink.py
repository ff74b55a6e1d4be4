"""Finding the scheduler again and again: how long to wait between tries, and no try without an end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from contracts.messages import Endpoint
from orchestrator.cluster.channel import connect
from orchestrator.cluster.connection import ChannelError, Connection, Role

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


async def connect_scheduler(
    locate: Locate,
    node_id: str,
    secret: bytes,
    role: Role,
    peer_id: str,
    message_type: Any,
    on_message: Callable[[Connection, Any], None],
    on_close: Callable[[Connection], None],
) -> Connection:
    """Find the scheduler and connect to it, each in bounded time. Raises ChannelError."""
    try:
        async with asyncio.timeout(LOCATE_TIMEOUT_S):
            endpoint = await locate()
    except TimeoutError:
        raise ChannelError(f"nobody told within {LOCATE_TIMEOUT_S} s where the scheduler listens") from None
    return await connect(endpoint, node_id, secret, role, peer_id, message_type, on_message, on_close)
