"""One streamed response over HTTP/2 on a connection of its own; see `adapters/exchange.py` for that over HTTP/1.1."""

import asyncio
from collections.abc import Mapping
from typing import Final, cast

from adapters.exchange import Address
from adapters.triton.http2 import frames
from adapters.triton.http2.exchange import Exchange
from adapters.triton.http2.frames import Http2Error

_CONNECT_TIMEOUT_S: Final = 5.0
#: How long a farewell may take on its way.
_LINGER_S: Final = 1.0
#: More answers than this to the other side's own questions are not kept for it.
_REPLIES_BYTES_MAX: Final = 256 * 1024
_RESET: Final = frames.reset(1, frames.CANCEL)


class Http2Stream(asyncio.Protocol):
    """The response to one request. `head` and `trailers` are its fields, as far as they came."""

    def __init__(self, head: Mapping[str, str], body: bytes) -> None:
        self._loop = asyncio.get_running_loop()
        self._exchange = Exchange(head, body)
        self._body_bytes = len(body)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._broken: Exception | None = None

    @property
    def head(self) -> Mapping[bytes, bytes]:
        return self._exchange.head or {}

    @property
    def trailers(self) -> Mapping[bytes, bytes]:
        return self._exchange.trailers or {}

    async def read(self) -> bytes:
        """What came of the body since the last call, waiting for something; empty at its regular end.

        Raises ConnectionError when the other side breaks off before that, and after `close`.
        """
        exchange = self._exchange
        while not exchange.parts and not exchange.ended:
            if self._broken is not None:
                raise ConnectionError(str(self._broken))
            self._waiter = self._loop.create_future()
            await self._waiter
        data = exchange.take()
        self._send()
        return data

    def close(self) -> None:
        """Let go of the connection. The server is told to cancel, unless the response has ended. Safe to repeat."""
        transport = self._transport
        self._transport = None
        if transport is None:
            return
        if self._exchange.ended or self._broken is not None or transport.get_write_buffer_size():
            transport.abort()
            return
        transport.write(_RESET)
        transport.close()
        self._linger = self._loop.call_later(_LINGER_S, transport.abort)

    def _send(self) -> None:
        data = self._exchange.to_send()
        if not data or self._transport is None:
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > self._body_bytes + _REPLIES_BYTES_MAX:
            self._break(Http2Error("it asks and does not listen"))

    def _break(self, error: Exception) -> None:
        self._broken = self._broken or error
        self.close()

    # ------------------------------------------------------------- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from asyncio's
        self._send()

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        try:
            self._exchange.feed(data)
        except Http2Error as error:
            self._break(error)
        else:
            self._send()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._linger is not None:
            self._linger.cancel()
        self._broken = self._broken or exc or ConnectionError("the connection ended")
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def open_http2(address: Address, head: Mapping[str, str], body: bytes) -> Http2Stream:
    """Send a request. Raises OSError; the caller closes the stream."""
    loop = asyncio.get_running_loop()

    def stream_of_request() -> Http2Stream:
        return Http2Stream(head, body)

    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
        if address.socket_path:
            _, stream = await loop.create_unix_connection(stream_of_request, address.socket_path)
        else:
            _, stream = await loop.create_connection(stream_of_request, address.host, address.port)
    return stream
