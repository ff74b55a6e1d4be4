"""The load driver's HTTP client: chunks, ends, broken connections."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from benchmarks.exchange import BrokenExchange, Exchange, dechunk


def test_chunks_are_joined() -> None:
    assert dechunk(b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n") == b"abc0123456789"


@pytest.mark.parametrize(
    "raw",
    [
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc\r\n",
        b"3\r\nabc\r\n0\r\n\r\nmore",
        b"x\r\nabc\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_chunked_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        dechunk(raw)


class Server:
    """Answers each request on a connection with the next script: pieces, sent apart; None hangs up."""

    def __init__(self) -> None:
        self.scripts: list[list[bytes | None]] = []
        self.port = 0
        self.idle = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._answer(reader, writer)
        writer.close()
        self.idle.set()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for script in self.scripts:
            await reader.readuntil(b"\r\n\r\n")
            for piece in script:
                if piece is None:
                    return
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.005)  # let the pieces arrive apart; nothing is timed
        await reader.read()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    yield made
    listening.close()
    async with asyncio.timeout(5):
        await made.idle.wait()


async def connect(server: Server) -> Exchange:
    _, exchange = await asyncio.get_running_loop().create_connection(Exchange, "127.0.0.1", server.port)
    return exchange


async def test_responses_of_both_framings_share_a_connection(server: Server) -> None:
    server.scripts = [
        [b"HTTP/1.1 202 Accepted\r\nContent-Le", b"ngth: 5\r\n\r\nhe", b"llo"],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"4\r\nab\r", b"\n\r\n0\r\n", b"\r\n"],
        [b"HTTP/1.1 204 No Content\r\n\r\n"],
    ]
    exchange = await connect(server)
    first = await exchange.request(b"GET / HTTP/1.1\r\n\r\n")
    second = await exchange.request(b"GET / HTTP/1.1\r\n\r\n")
    third = await exchange.request(b"GET / HTTP/1.1\r\n\r\n")
    assert [(answer.status, answer.body) for answer in (first, second, third)] == [
        (202, b"hello"),
        (200, b"ab\r\n"),
        (204, b""),
    ]
    assert exchange.open
    exchange.close()


async def test_the_marker_is_seen_across_pieces_and_only_where_it_is(server: Server) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    server.scripts = [[head, b"c\r\nevent: to", b"ken\r\n0\r\n\r\n"], [head, b"5\r\nevent\r\n0\r\n\r\n"]]
    exchange = await connect(server)
    assert (await exchange.request(b"GET / HTTP/1.1\r\n\r\n", b"event: token")).first_ns > 0
    assert (await exchange.request(b"GET / HTTP/1.1\r\n\r\n", b"event: token")).first_ns == 0
    exchange.close()


@pytest.mark.parametrize(
    "script",
    [
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", None],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", None],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab\r\n0\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab"],
        [None],
    ],
)
async def test_a_broken_response_is_an_error(server: Server, script: list[bytes | None]) -> None:
    server.scripts = [script]
    exchange = await connect(server)
    with pytest.raises(BrokenExchange):
        await exchange.request(b"GET / HTTP/1.1\r\n\r\n")
    assert not exchange.open
