"""An ingress's connections to replicas: one for each that serves a stream here, made on first use.

Nobody waits for a connection: subscriptions are sent once it is there, and told "unknown" where it cannot be made or
is cut. Whoever still wants the tokens subscribes again.
"""

import asyncio
from typing import Any

from msgspec.structs import replace

from contracts import messages as wire
from orchestrator.cluster.channel import connect
from orchestrator.cluster.connection import ChannelError, Connection
from orchestrator.cluster.following import Following

Address = tuple[str, int]


class _Link:
    """A connection, or the attempt to make one, and whose subscriptions are on it."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.dial: asyncio.Task[None] | None = None
        self.readers: dict[int, Following] = {}
        #: What is sent when the connection is there.
        self.waiting: dict[int, wire.Subscribe] = {}


class ReplicaLinks:
    """Subscriptions of this ingress's streams, by number, on connections that they share."""

    def __init__(self, secret: bytes, node_id: str, peer_id: str) -> None:
        self._secret = secret
        self._node_id = node_id
        self._peer_id = peer_id
        self._links: dict[Address, _Link] = {}
        self._by_sid: dict[int, _Link] = {}
        self._number = 0

    def subscribe(self, reader: Following, started: wire.TaskStarted, first: int, credit: int) -> int:
        """Subscribe to an attempt's tokens and return the subscription's id."""
        self._number += 1
        sid = self._number
        address = (started.endpoint.host, started.endpoint.port)
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = _Link()
            link.dial = asyncio.get_running_loop().create_task(self._dial(link, address, started.endpoint))
        self._by_sid[sid] = link
        link.readers[sid] = reader
        message = wire.Subscribe(sid, started.task_id, started.attempt, first, credit)
        if link.connection is None:
            link.waiting[sid] = message
        else:
            link.connection.send(message)
        return sid

    def grant(self, sid: int, tokens: int) -> None:
        """Let the replica send more."""
        link = self._by_sid.get(sid)
        if link is None:
            return
        waiting = link.waiting.get(sid)
        if waiting is not None:
            link.waiting[sid] = replace(waiting, credit=waiting.credit + tokens)
        elif link.connection is not None:
            link.connection.send(wire.Credit(sid, tokens))

    def unsubscribe(self, sid: int) -> None:
        """Stop a subscription."""
        link = self._by_sid.pop(sid, None)
        if link is None:
            return
        del link.readers[sid]
        if link.waiting.pop(sid, None) is None and link.connection is not None:
            link.connection.send(wire.Unsubscribe(sid))

    async def close(self) -> None:
        """End all connections."""
        links, self._links = list(self._links.values()), {}
        dials = [link.dial for link in links if link.dial is not None]
        for link in links:
            if link.connection is not None:
                link.connection.close()
        for dial in dials:
            dial.cancel()
        await asyncio.gather(*dials, return_exceptions=True)

    async def _dial(self, link: _Link, address: Address, endpoint: wire.Endpoint) -> None:
        def lost(_connection: Connection) -> None:
            self._lost(link, address)

        try:
            connection = await connect(
                endpoint, self._node_id, self._secret, "ingress", self._peer_id, wire.ToIngress, self._received, lost
            )
        except ChannelError:
            self._lost(link, address)
            return
        if connection.closed:
            return
        link.connection = connection
        waiting, link.waiting = link.waiting, {}
        for message in waiting.values():
            connection.send(message)

    def _lost(self, link: _Link, address: Address) -> None:
        if self._links.get(address) is link:
            del self._links[address]
        link.connection = None
        link.waiting.clear()
        for sid, reader in list(link.readers.items()):
            reader.over(wire.StreamOver(sid, "unknown"))
            self._by_sid.pop(sid, None)
        link.readers.clear()

    def _received(self, _connection: Connection, message: Any) -> None:
        if isinstance(message, wire.TokenBatch):
            for sid, first, texts in message.items:
                link = self._by_sid.get(sid)
                if link is not None:
                    link.readers[sid].tokens(sid, first, texts)
        elif isinstance(message, wire.StreamOver):
            link = self._by_sid.get(message.sid)
            if link is not None:
                link.readers[message.sid].over(message)
