"""Just enough HTTP/1.1 for a peer: one request a connection, and answers as bytes to do with as one likes."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

_REQUEST_BYTES_MAX: Final = 16 * 1024 * 1024
_JSON: Final = "application/json"


class Call(Struct, frozen=True):
    """One request: method, path without query, headers in small letters, body."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answer(Struct, frozen=True):
    """A whole answer, its length told in advance."""

    status: int
    body: bytes = b""
    content_type: str = _JSON


def json_answer(status: int, body: object) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, msgspec.json.encode(body))


async def read_call(reader: asyncio.StreamReader) -> Call:
    """The next request. Raises ConnectionError for one that is cut off or larger than a peer wants to hold."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        request_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if length > _REQUEST_BYTES_MAX:
            raise ConnectionError(f"a request of {length} bytes")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise ConnectionError("the request was cut off") from error
    method, target, *_ = request_line.split(" ")
    return Call(method, target.partition("?")[0], headers, body)


def answer_bytes(answer: Answer) -> bytes:
    """The answer as it goes over the wire."""
    head = (
        f"HTTP/1.1 {answer.status} Peer\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n\r\n"
    )
    return head.encode() + answer.body


def stream_head(content_type: str = "text/event-stream") -> bytes:
    """The head of a streamed answer, whose body follows in chunks."""
    return f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def chunk(data: bytes) -> bytes:
    """One chunk of a streamed body; nothing for no data, because an empty chunk is the body's end."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


CHUNKS_END: Final = b"0\r\n\r\n"


def streamed(parts: Sequence[bytes], content_type: str = "text/event-stream") -> bytes:
    """A whole streamed answer, each of `parts` a chunk of its own."""
    return stream_head(content_type) + b"".join(chunk(part) for part in parts) + CHUNKS_END
