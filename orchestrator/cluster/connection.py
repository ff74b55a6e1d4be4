"""Framed msgpack between ingresses, scheduler and replicas: one connection per pair (OC-CTRL-2040).

A frame is a 4-byte big-endian length and a msgpack body. Before any message, both sides prove
that they hold the cluster's secret: the server sends a nonce, the client answers with its own
nonce and an HMAC over both, the server replies with its HMAC. Ray's own token auth does not
cover these sockets.

Messages of one event-loop turn leave in one write. A peer that does not read is cut off once
`SEND_BUFFER_BYTES_MAX` wait for it; a frame above `FRAME_BYTES_MAX` ends the connection.
"""

import asyncio
import hashlib
import hmac
import secrets
import socket
from collections.abc import Callable
from typing import Any, Final, Literal, cast

import msgspec
import structlog

from contracts.messages import encode
from orchestrator.cluster.outbox import LENGTH, Outbox

log = structlog.get_logger(__name__)

FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
HANDSHAKE_FRAME_BYTES_MAX: Final = 4096
SEND_BUFFER_BYTES_MAX: Final = 128 * 1024 * 1024
HANDSHAKE_TIMEOUT_S: Final = 5.0

#: A peer whose machine or network is gone says nothing at all: the connection is given up after about this long.
SILENCE_S: Final = 10
_PROBES_MAX: Final = 4

_NONCE_BYTES = 32

Role = Literal["ingress", "replica", "manager", "scheduler"]


class Hello(msgspec.Struct, frozen=True):
    """The client's half of the handshake."""

    role: Role
    peer_id: str
    nonce: bytes
    mac: bytes


class ChannelError(ConnectionError):
    """The connection could not be made, was refused, or broke the framing."""


def _mac(secret: bytes, side: str, *parts: bytes) -> bytes:
    digest = hmac.new(secret, side.encode(), hashlib.sha256)
    for part in parts:
        digest.update(LENGTH.pack(len(part)))
        digest.update(part)
    return digest.digest()


def _notice_silence(transport: asyncio.BaseTransport) -> None:
    """Have the kernel probe a peer on another machine, and bound how long what was sent may stay unacknowledged."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_S // 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES_MAX)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_S * 1000)


class Connection(asyncio.Protocol):
    """One authenticated connection. `on_message` and `on_close` run on the event loop.

    `peer_id` and `role` name the other side once `opened` has been set.
    """

    def __init__(
        self,
        secret: bytes,
        decoder: "msgspec.msgpack.Decoder[Any]",
        on_message: "Callable[[Connection, Any], None]",
        on_close: "Callable[[Connection], None]",
        *,
        on_open: "Callable[[Connection], None] | None" = None,
        hello: tuple[Role, str] | None = None,
    ) -> None:
        self.role: Role = "scheduler"
        self.peer_id = ""
        self.closed = False
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._secret = secret
        self._decode = decoder.decode
        self._on_message = on_message
        self._on_close = on_close
        self._on_open = on_open
        self._hello = hello
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._transport: asyncio.Transport | None = None
        self._inbox = bytearray()
        self._outbox: Outbox | None = None
        self._receive = self._handshake_frame
        self._frame_max = HANDSHAKE_FRAME_BYTES_MAX
        self._deadline: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ sending

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message; it leaves at the end of this event-loop turn. No-op once closed."""
        if not self.closed and self._outbox is not None:
            self._outbox.send(message)

    def send_in_turn(self, message: msgspec.Struct, size_bytes: int) -> bool:
        """Queue a large message, of about `size_bytes`, once little enough is on its way. False: too many wait."""
        return self.closed or self._outbox is None or self._outbox.send_in_turn(message, size_bytes)

    def flush(self) -> None:
        """Hand over now what was queued, but for what waits behind large messages: nothing sent later overtakes it."""
        if not self.closed and self._outbox is not None:
            self._outbox.flush()

    def _flushed(self, waiting_bytes: int) -> None:
        if not self.closed and waiting_bytes > SEND_BUFFER_BYTES_MAX:
            self._abort(f"{self.peer_id} does not read; {SEND_BUFFER_BYTES_MAX} bytes wait for it")

    def _send_raw(self, body: bytes) -> None:
        assert self._transport is not None
        self._transport.write(LENGTH.pack(len(body)) + body)

    def close(self) -> None:
        """End the connection; queued messages still leave."""
        if not self.closed and self._transport is not None:
            if self._outbox is not None:
                self._outbox.write_all()
            self._transport.close()

    def _abort(self, why: str) -> None:
        log.warning("channel.aborted", peer=self.peer_id, reason=why)
        if not self.opened.done():
            self.opened.set_exception(ChannelError(why))
        if self._transport is not None:
            self._transport.abort()

    # ---------------------------------------------------------------- receiving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        _notice_silence(transport)
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from asyncio's
        self._outbox = Outbox(self._transport, self._flushed)
        self._deadline = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._abort, "handshake timed out")
        if self._hello is None:
            self._send_raw(self._nonce)

    def data_received(self, data: bytes) -> None:
        inbox = self._inbox
        inbox += data
        start, end = 0, len(inbox)
        while end - start >= 4:
            (length,) = LENGTH.unpack_from(inbox, start)
            if length > self._frame_max:
                self._abort(f"frame of {length} bytes is over the limit of {self._frame_max}")
                return
            if end - start - 4 < length:
                break
            body = bytes(memoryview(inbox)[start + 4 : start + 4 + length])
            start += 4 + length
            try:
                self._receive(body)
            except (msgspec.DecodeError, ChannelError) as broken:
                self._abort(f"unusable frame: {broken}")
                return
            if self.closed:
                return
        if start:
            del inbox[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._outbox is not None:
            self._outbox.clear()
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.opened.done():
            self.opened.set_exception(ChannelError(f"connection ended during the handshake: {exc}"))
        if not self.opened.cancelled() and self.opened.exception() is None:
            self._on_close(self)

    # ---------------------------------------------------------------- handshake

    def _handshake_frame(self, body: bytes) -> None:
        if self._hello is None:
            self._server_handshake(body)
        elif self.peer_id == "":
            self._answer_challenge(body)
        else:
            self._check_welcome(body)

    def _server_handshake(self, body: bytes) -> None:
        hello = msgspec.msgpack.decode(body, type=Hello)
        expected = _mac(self._secret, "client", self._nonce, hello.nonce, hello.role.encode(), hello.peer_id.encode())
        if not hmac.compare_digest(expected, hello.mac):
            raise ChannelError("the peer does not hold the cluster's secret")
        self.role, self.peer_id = hello.role, hello.peer_id
        self._send_raw(_mac(self._secret, "server", hello.nonce, self._nonce))
        self._open()

    def _answer_challenge(self, nonce: bytes) -> None:
        assert self._hello is not None
        role, peer_id = self._hello
        self.peer_id = "server"
        mac = _mac(self._secret, "client", nonce, self._nonce, role.encode(), peer_id.encode())
        self._send_raw(encode(Hello(role, peer_id, self._nonce, mac)))
        self._welcome = _mac(self._secret, "server", self._nonce, nonce)

    def _check_welcome(self, body: bytes) -> None:
        if not hmac.compare_digest(self._welcome, body):
            raise ChannelError("the server does not hold the cluster's secret")
        self._open()

    def _open(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._frame_max = FRAME_BYTES_MAX
        self._receive = self._message_frame
        if not self.opened.done():
            self.opened.set_result(None)
        if self._on_open is not None:
            self._on_open(self)

    def _message_frame(self, body: bytes) -> None:
        self._on_message(self, self._decode(body))
