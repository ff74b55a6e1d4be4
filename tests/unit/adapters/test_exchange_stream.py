"""One streamed completion over a Unix socket, against a peer that answers byte for byte what a test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from adapters import exchange
from adapters.exchange import Address, open_stream

HEADERS = {"Authorization": "Bearer key"}
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"


@contextlib.asynccontextmanager
async def peer(folder: Path, *parts: bytes, keep_open: bool = False) -> AsyncIterator[tuple[Path, list[bytes]]]:
    """Answers each connection with `parts`, one write each, and then closes it unless told not to."""
    requests: list[bytes] = []
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        requests.append(head + await reader.readexactly(length))
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            if keep_open:
                await reader.read()
            writer.close()
            await writer.wait_closed()
        served.set()

    path = folder / "engine.sock"
    server = await asyncio.start_unix_server(serve, path)
    try:
        yield path, requests
        await asyncio.wait_for(served.wait(), 20)
    finally:
        server.close()


async def read_all(path: Path) -> tuple[int, bytes]:
    async with asyncio.timeout(20):
        stream = await open_stream(Address(socket_path=str(path)), "/completion", b"{}", HEADERS)
        got = b""
        while part := await stream.read():
            got += part
    stream.close()
    return stream.status, got


def chunked(*bodies: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in (*bodies, b""))


def bytewise(data: bytes) -> Sequence[bytes]:
    return [data[n : n + 1] for n in range(len(data))]


@pytest.mark.req("OC-ADAPT-5001")
@pytest.mark.parametrize("split", [lambda data: [data], bytewise], ids=["whole", "bytewise"])
async def test_a_chunked_body_arrives_whole_whatever_the_borders(tmp_path: Path, split: object) -> None:
    answer = HEAD + chunked(b"data: one\n\n", "data: zwei \u20ac\n\n".encode())
    async with peer(tmp_path, *split(answer), keep_open=True) as (path, requests):  # type: ignore[operator]
        assert await read_all(path) == (200, "data: one\n\ndata: zwei \u20ac\n\n".encode())
    assert b"Authorization: Bearer key\r\n" in requests[0]
    assert requests[0].endswith(b"{}")


@pytest.mark.req("OC-ADAPT-5001")
@pytest.mark.parametrize(
    "answer",
    [HEAD + b"5\r\ndata", HEAD + chunked(b"data: x\n\n")[:-2], b"", b"not http at all\r\n\r\n", HEAD + b"zz\r\nx\r\n"],
    ids=["cut in a chunk", "cut before the end", "no head", "no http", "bad chunk"],
)
async def test_a_response_that_breaks_off_is_an_error_and_never_an_end(tmp_path: Path, answer: bytes) -> None:
    async with peer(tmp_path, answer) as (path, _):
        with pytest.raises(OSError):  # noqa: PT011 (any kind of broken connection)
            await read_all(path)


async def test_a_refusal_has_its_status_and_body(tmp_path: Path) -> None:
    async with peer(tmp_path, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nnope") as (path, _):
        assert await read_all(path) == (400, b"nope")


async def test_what_nobody_reads_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "UNREAD_BYTES_MAX", 10_000)
    body = b"x" * 5_000_000
    async with peer(tmp_path, HEAD, chunked(body)) as (path, _):
        stream = await open_stream(Address(socket_path=str(path)), "/completion", b"{}", HEADERS)
        await asyncio.sleep(0.1)
        assert stream._unread_bytes < len(body)
        got = b""
        async with asyncio.timeout(20):
            while part := await stream.read():
                got += part
        assert got == body
        stream.close()


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(OSError):  # noqa: PT011 (connection refused or no such file)
        await open_stream(Address(socket_path=str(tmp_path / "absent.sock")), "/completion", b"{}", HEADERS)
