"""The channel between ingress, scheduler and replicas: authenticated, framed, bounded."""

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from contracts import messages as wire
from orchestrator.cluster import connection as connections
from orchestrator.cluster import outbox
from orchestrator.cluster.channel import ChannelServer, connect
from orchestrator.cluster.connection import ChannelError, Connection

SECRET, NODE = b"s" * 32, "node-1"


class Inbox:
    """Collects what a server is told."""

    def __init__(self) -> None:
        self.opened: list[Connection] = []
        self.closed: list[Connection] = []
        self.messages: list[Any] = []
        self.changed = asyncio.Event()

    def open(self, connection: Connection) -> None:
        self.opened.append(connection)
        self.changed.set()

    def message(self, _connection: Connection, message: Any) -> None:
        self.messages.append(message)
        self.changed.set()

    def close(self, connection: Connection) -> None:
        self.closed.append(connection)
        self.changed.set()

    async def wait(self, condition: Any) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[tuple[Inbox, wire.Endpoint]]:
    inbox = Inbox()
    listening = ChannelServer(SECRET, wire.ToScheduler, inbox.open, inbox.message, inbox.close)
    endpoint = await listening.start(NODE, "127.0.0.1")
    try:
        yield inbox, endpoint
    finally:
        await listening.close()


def dial(endpoint: wire.Endpoint, secret: bytes = SECRET, node_id: str = NODE) -> Any:
    client = Inbox()
    return connect(endpoint, node_id, secret, "ingress", "i-1", wire.ToIngress, client.message, client.close)


@pytest.mark.parametrize("node_id", [NODE, "another-node"], ids=["unix", "tcp"])
@pytest.mark.req("OC-CTRL-2040")
async def test_messages_arrive_in_order_from_a_named_peer(node_id: str) -> None:
    async with server() as (inbox, endpoint):
        connection = await dial(endpoint, node_id=node_id)
        sent = [wire.GetMetrics(n) for n in range(1000)]
        sent.append(wire.CountRejected("x" * 5_000_000, "INVALID_PARAMS"))
        for message in sent:
            connection.send(message)
        await inbox.wait(lambda: len(inbox.messages) == len(sent))
        assert inbox.messages == sent
        assert (inbox.opened[0].role, inbox.opened[0].peer_id) == ("ingress", "i-1")
        connection.close()
        await inbox.wait(lambda: inbox.closed)


@pytest.mark.req("OC-CTRL-2040")
async def test_a_client_without_the_secret_is_refused() -> None:
    async with server() as (inbox, endpoint):
        with pytest.raises(ChannelError):
            await dial(endpoint, secret=b"wrong" * 8)
        assert inbox.opened == []


@pytest.mark.req("OC-CTRL-2040")
async def test_a_server_without_the_secret_is_refused() -> None:
    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(struct.pack(">I", 32) + b"n" * 32)
        await reader.readexactly(4)
        writer.write(struct.pack(">I", 32) + b"m" * 32)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    gone = asyncio.Event()
    listening = await asyncio.start_server(impostor, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    with pytest.raises(ChannelError):
        await dial(wire.Endpoint("elsewhere", "", "127.0.0.1", port))
    listening.close()
    await asyncio.wait_for(gone.wait(), 20)


@pytest.mark.req("OC-CTRL-2040")
async def test_the_unix_socket_is_private() -> None:
    async with server() as (_, endpoint):
        assert stat.S_IMODE(os.stat(endpoint.uds_path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(endpoint.uds_path)).st_mode) == 0o700


async def raw(endpoint: wire.Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(endpoint.uds_path)
    await reader.readexactly(4 + 32)
    return reader, writer


@pytest.mark.parametrize("frame", [struct.pack(">I", 2**31), struct.pack(">I", 5) + b"\xc1junk"], ids=["huge", "junk"])
async def test_a_frame_that_cannot_be_used_ends_the_connection(frame: bytes) -> None:
    async with server() as (inbox, endpoint):
        reader, writer = await raw(endpoint)
        writer.write(frame)
        assert await asyncio.wait_for(reader.read(), 20) == b""
        assert inbox.opened == []
        writer.close()


async def test_a_peer_that_never_answers_the_challenge_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HANDSHAKE_TIMEOUT_S", 0.05)
    async with server() as (inbox, endpoint):
        reader, writer = await raw(endpoint)
        assert await asyncio.wait_for(reader.read(), 20) == b""
        assert inbox.opened == []
        writer.close()


async def test_a_peer_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SEND_BUFFER_BYTES_MAX", 1_000_000)
    async with server() as (inbox, endpoint):
        nonce = b"c" * 32
        reader, writer = await asyncio.open_unix_connection(endpoint.uds_path)
        challenge = (await reader.readexactly(36))[4:]
        mac = connections._mac(SECRET, "client", challenge, nonce, b"ingress", b"deaf")
        hello = msgspec.msgpack.encode(connections.Hello("ingress", "deaf", nonce, mac))
        writer.write(struct.pack(">I", len(hello)) + hello)
        await inbox.wait(lambda: inbox.opened)
        for _ in range(40):
            inbox.opened[0].send(wire.MetricsText(1, b"x" * 100_000))
            await asyncio.sleep(0)
        await inbox.wait(lambda: inbox.closed)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_large_messages_wait_their_turn_and_all_arrive_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the whole send buffer in one turn, as when many ask for results at once."""
    monkeypatch.setattr(connections, "SEND_BUFFER_BYTES_MAX", 2_000_000)
    monkeypatch.setattr(outbox, "BACKLOG_BYTES_MAX", 500_000)
    async with server() as (inbox, endpoint):
        connection = await dial(endpoint)
        sent: list[Any] = []
        for n in range(12):
            transcript = wire.AttemptTranscript(f"t{n}", 1, b"x" * 400_000)
            assert connection.send_in_turn(transcript, 400_000)
            connection.send(wire.GetMetrics(n))
            sent += (transcript, wire.GetMetrics(n))
        await inbox.wait(lambda: len(inbox.messages) == len(sent))
        assert inbox.messages == sent
        assert connection.send_in_turn(wire.AttemptTranscript("last", 1, b"x" * 700_000), 700_000)
        assert connection.send_in_turn(wire.AttemptTranscript("after", 1, b"x" * 100), 100)
        connection.close()  # what waits still leaves
        await inbox.wait(lambda: inbox.closed)
        assert [message.task_id for message in inbox.messages[-2:]] == ["last", "after"]


async def test_only_so_many_large_messages_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "BACKLOG_BYTES_MAX", 1000)
    monkeypatch.setattr(outbox, "TURNS_BYTES_MAX", 5000)
    async with server() as (inbox, endpoint):
        connection = await dial(endpoint)
        taken = [connection.send_in_turn(wire.AttemptTranscript(f"t{n}", 1, b"x" * 2000), 2000) for n in range(5)]
        assert taken == [True, True, True, False, False]
        await inbox.wait(lambda: len(inbox.messages) == 3)
        connection.close()
        await inbox.wait(lambda: inbox.closed)


@pytest.mark.req("OC-CTRL-2040")
async def test_a_peer_whose_machine_is_gone_is_noticed_by_its_silence() -> None:
    async with server() as (inbox, endpoint):
        link = await connect(
            endpoint, "another node", SECRET, "ingress", "i", wire.ToIngress, lambda *_: None, lambda _: None
        )
        await inbox.wait(lambda: inbox.opened)
        for each in (link, inbox.opened[0]):
            assert each._transport is not None
            sock = each._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == connections.SILENCE_S * 1000
        link.close()


@pytest.mark.req("ORCH-3045")
async def test_what_is_flushed_has_left_before_what_is_sent_next() -> None:
    async with server() as (inbox, endpoint):
        link = await connect(endpoint, NODE, SECRET, "ingress", "i", wire.ToIngress, lambda *_: None, lambda _: None)
        written: list[bytes] = []
        assert link._transport is not None
        write = link._transport.write
        link._transport.write = lambda data: (written.append(bytes(data)), write(data))[1]  # type: ignore[method-assign,func-returns-value]
        link.send(wire.Unwatch("first"))
        link.flush()
        assert len(written) == 1
        link.send(wire.Unwatch("second"))
        await inbox.wait(lambda: len(inbox.messages) == 2)
        assert [message.task_id for message in inbox.messages] == ["first", "second"]
        assert len(written) == 2
        link.close()
        link.flush()  # closed: nothing happens
