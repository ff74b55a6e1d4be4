"""Subscriptions that came before their attempt's start.

The scheduler tells ingress and replica at the same time, and the ingress may be faster.
"""

import asyncio
from typing import Final

from contracts.messages import StreamOver, Subscribe
from orchestrator.cluster.connection import Connection

#: How many may wait, and for how long, before they are told "unknown".
EARLY_MAX: Final = 1024
EARLY_WAIT_S: Final = 2.0


class EarlySubscriptions:
    """Those that wait, each for a bounded time."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Connection, int], Subscribe] = {}

    def wait(self, connection: Connection, message: Subscribe) -> bool:
        """Keep one until its attempt starts; false if too many wait."""
        if len(self._waiting) >= EARLY_MAX:
            return False
        self._waiting[connection, message.sid] = message
        asyncio.get_running_loop().call_later(EARLY_WAIT_S, self._give_up, connection, message)
        return True

    def take(self, task_id: str, attempt: int) -> list[tuple[Connection, Subscribe]]:
        """Those of an attempt that starts now."""
        found = [
            (key, message)
            for key, message in self._waiting.items()
            if message.task_id == task_id and message.attempt == attempt
        ]
        for key, _ in found:
            del self._waiting[key]
        return [(key[0], message) for key, message in found]

    def _give_up(self, connection: Connection, message: Subscribe) -> None:
        if self._waiting.get((connection, message.sid)) is message:
            del self._waiting[connection, message.sid]
            connection.send(StreamOver(message.sid, "unknown"))
