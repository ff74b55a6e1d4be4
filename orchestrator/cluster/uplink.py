"""A replica's link to the scheduler: made anew whenever it breaks, while all that the replica does goes on.

What is reported while there is no link is dropped: a new link begins with a greeting that tells how things stand.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from contracts import messages as wire
from contracts.pools import LeaseRenewed
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.relink import Caller, Locate, stay_linked
from orchestrator.cluster.reports import send_report

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
        self._caller = Caller("replica", replica_id, node_id, secret, wire.ToReplica)
        self._locate = locate
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
        await stay_linked(self._caller, self._locate, self._on_message, self._begun, self._ended)

    def _begun(self, link: Connection) -> None:
        self._link = link
        for message in self._greeting():
            send_report(link, message)
        link.flush()
        self._on_linked()

    def _ended(self) -> None:
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
