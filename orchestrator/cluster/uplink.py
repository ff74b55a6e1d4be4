"""A replica's link to the scheduler: made anew whenever it breaks, while all that the replica does goes on.

What is reported while there is no link is dropped: a new link begins with a greeting that tells how things stand.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import structlog

from contracts import messages as wire
from contracts.pools import LeaseRenewed
from orchestrator.cluster.connection import ChannelError, Connection
from orchestrator.cluster.relink import RECONNECT_MAX_S, RECONNECT_MIN_S, Backoff, Locate, connect_scheduler
from orchestrator.cluster.reports import send_report

log = structlog.get_logger(__name__)

#: Several fit into the shortest time after which a silent replica is sent nothing more.
LEASE_INTERVAL_S: Final = 0.5


class Uplink:
    """`greeting` gives what a new link begins with; `on_linked` is told when that has left, `on_lost` of its end."""

    def __init__(
        self,
        replica_id: str,
        secret: bytes,
        locate: Locate,
        node_id: str,
        on_message: Callable[[Connection, Any], None],
        greeting: Callable[[], Iterable[msgspec.Struct]],
        on_linked: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._replica_id = replica_id
        self._secret = secret
        self._locate = locate
        self._node_id = node_id
        self._on_message = on_message
        self._greeting = greeting
        self._on_linked = on_linked
        self._on_lost = on_lost
        self._link: Connection | None = None

    def report(self, message: msgspec.Struct) -> None:
        """Send to the scheduler, in order; dropped while there is no link."""
        if self._link is not None:
            send_report(self._link, message)

    def flush(self) -> bool:
        """Have what was reported leave before anything else does; False where there is no link for it."""
        if self._link is None or self._link.closed:
            return False
        self._link.flush()
        return True

    def is_made_by(self, connection: Connection) -> bool:
        """Whether this connection is the link that there is now."""
        return connection is self._link

    async def keep(self) -> None:
        """Make the link, and make it anew when it breaks; returns only by cancellation."""
        backoff = Backoff(RECONNECT_MIN_S, RECONNECT_MAX_S)
        while True:
            with contextlib.suppress(ChannelError):
                await self._hold(backoff)
            await asyncio.sleep(backoff.next_s())

    async def _hold(self, backoff: Backoff) -> None:
        lost = asyncio.Event()
        link = await connect_scheduler(
            self._locate,
            self._node_id,
            self._secret,
            "replica",
            self._replica_id,
            wire.ToReplica,
            self._on_message,
            lambda _closed: lost.set(),
        )
        if link.closed:
            return
        self._link = link
        loop = asyncio.get_running_loop()
        since_s = loop.time()
        for message in self._greeting():
            send_report(link, message)
        link.flush()
        self._on_linked()
        await lost.wait()
        backoff.held(loop.time() - since_s)
        log.warning("scheduler.lost", replica_id=self._replica_id)
        self._link = None
        self._on_lost()

    def close(self) -> None:
        """End the link; what was reported still leaves."""
        if self._link is not None:
            self._link.close()
            self._link = None

    async def renew_lease(self) -> None:
        """Tell again and again, while linked, that the replica lives."""
        renewed = LeaseRenewed(self._replica_id)
        while True:
            self.report(renewed)
            await asyncio.sleep(LEASE_INTERVAL_S)
