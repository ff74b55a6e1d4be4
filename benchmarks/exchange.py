"""A small HTTP/1.1 client for load: keep-alive, one request at a time, the time of the first token.

It does as little as it can while a stream runs (append, look for the end) and takes the message
apart when it is complete: on a small machine the load driver must not be what is measured.
"""

import asyncio
import re
import time
from typing import Final, NamedTuple, cast

_HEAD_END: Final = b"\r\n\r\n"
#: What is streamed here holds no CR, so these bytes stand nowhere but at a chunked message's end.
_CHUNKED_END: Final = b"\r\n0\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)")
_CHUNKED: Final = b"\r\ntransfer-encoding: chunked"


class Response(NamedTuple):
    """A complete response; `first_ns` is when `marker` was first seen in it (0: never)."""

    status: int
    body: bytes
    first_ns: int


class BrokenExchange(Exception):
    """The connection ended, or what came over it is not HTTP."""


class Exchange(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Response] | None = None
        self._buffer = bytearray()
        self._marker = b""
        self._first_ns = 0
        self._body_at = 0
        self._end_at = -1

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def request(self, message: bytes, marker: bytes = b"") -> Response:
        """Send one request and return its response. Raises BrokenExchange."""
        if self._transport is None:
            raise BrokenExchange("the server closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._buffer.clear()
        self._marker, self._first_ns, self._body_at, self._end_at = marker, 0, 0, -1
        self._transport.write(message)
        return await self._answer

    # ---------------------------------------------------------------- the protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from asyncio's

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(f"the connection ended after {len(self._buffer)} bytes: {exc}")

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        before = len(buffer)
        buffer += data
        if self._marker and not self._first_ns and buffer.find(self._marker, max(0, before - len(self._marker))) >= 0:
            self._first_ns = time.perf_counter_ns()
        if not self._body_at:
            self._read_head()
        if self._body_at and self._complete():
            self._finish()

    def _read_head(self) -> None:
        at = self._buffer.find(_HEAD_END)
        if at < 0:
            return
        self._body_at = at + len(_HEAD_END)
        head = bytes(self._buffer[: at + 2]).lower()
        if _CHUNKED not in head:
            length = _LENGTH.search(head)
            self._end_at = self._body_at + (int(length[1]) if length else 0)

    def _complete(self) -> bool:
        if self._end_at < 0:
            return self._buffer.endswith(_CHUNKED_END)
        return len(self._buffer) >= self._end_at

    def _finish(self) -> None:
        body = bytes(self._buffer[self._body_at :])
        try:
            status = int(self._buffer[9:12])
            if self._end_at < 0:
                body = dechunk(body)
            elif len(self._buffer) > self._end_at:
                raise ValueError("bytes after the end of the response")
        except ValueError as error:
            self._fail(f"unreadable response: {error}")
            self.close()
            return
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Response(status, body, self._first_ns))

    def _fail(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BrokenExchange(why))


def dechunk(raw: bytes) -> bytes:
    """The content of a chunked body without extensions and trailers. Raises ValueError for anything else."""
    parts = []
    at = 0
    while True:  # each round takes at least one line of `raw`
        line_end = raw.index(b"\r\n", at)
        size = int(raw[at:line_end], 16)
        at = line_end + 2
        if size == 0:
            break
        parts.append(raw[at : at + size])
        at += size
        if raw[at : at + 2] != b"\r\n":
            raise ValueError("a chunk is longer or shorter than it says")
        at += 2
    if raw[at:] != b"\r\n":
        raise ValueError("bytes after the last chunk")
    return b"".join(parts)
