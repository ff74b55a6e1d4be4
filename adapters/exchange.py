"""One streamed response on a connection of its own, with little between socket and reader.

Engines send a frame per token; a full HTTP client would spend more on each than all the rest
of the way to the client does.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, cast

import httptools
from msgspec import Struct

#: Above this many unread bytes the engine is held back.
UNREAD_BYTES_MAX: Final = 256 * 1024
_CONNECT_TIMEOUT_S: Final = 5.0


class Address(Struct, frozen=True):
    """Where an engine listens: on a Unix socket, or else on a port."""

    socket_path: str = ""
    host: str = "127.0.0.1"
    port: int = 0

    @property
    def authority(self) -> str:
        """What goes into the `Host` header and the URL."""
        if self.socket_path:
            return "engine"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ResponseStream(asyncio.Protocol):
    """The response to one request. `status` and `content_type` are known once `open_stream` has returned."""

    def __init__(self) -> None:
        self.status = 0
        self.content_type = b""
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._unread_bytes = 0
        self._paused = False
        self._ended = False
        self._broken: Exception | None = None

    async def read(self) -> bytes:
        """What came since the last call, waiting for something; empty at the response's regular end.

        Raises ConnectionError when the connection breaks before that.
        """
        parts = self._parts
        while not parts and not self._ended:
            await self._news()
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._unread_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def head(self) -> None:
        """Wait for the response's head. Raises ConnectionError."""
        while not self.status:
            await self._news()

    def close(self) -> None:
        """Let go of the connection; the engine takes that as a cancel unless the response has ended."""
        if self._transport is not None:
            self._transport.abort()

    async def _news(self) -> None:
        if self._broken is not None:
            raise ConnectionError(str(self._broken))
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ------------------------------------------------------------- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from asyncio's

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._broken = error
            self.close()
        if self._unread_bytes > UNREAD_BYTES_MAX and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._broken = self._broken or exc or ConnectionError("the connection ended")
        self._wake()

    # ---------------------------------------------------------------- called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.content_type = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._unread_bytes += len(body)

    def on_message_complete(self) -> None:
        self._ended = True


async def open_stream(address: Address, target: str, body: bytes, headers: Mapping[str, str]) -> ResponseStream:
    """POST `body` and wait for the response's head. Raises OSError; the caller closes the stream."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
        if address.socket_path:
            transport, stream = await loop.create_unix_connection(ResponseStream, address.socket_path)
        else:
            transport, stream = await loop.create_connection(ResponseStream, address.host, address.port)
    own = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    transport.write(
        f"POST {target} HTTP/1.1\r\nHost: {address.authority}\r\n{own}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    try:
        await stream.head()
    except BaseException:
        stream.close()
        raise
    return stream
