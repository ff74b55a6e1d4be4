"""Whatever a llama-server sends, there is one end or an EngineError, wherever its bytes are cut."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.attempts import Attempt
from adapters.exchange import ResponseStream
from adapters.llamacpp.protocol import error_of_response, parse_metrics
from adapters.llamacpp.stream import read_completion
from contracts.engine import Chunk, EngineError, Finish

FRAMES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b'data: {"content":"a","tokens_predicted":1}\n\n',
            b'data: {"content":"","tokens_predicted":9223372036854775808}\n\n',
            b'data: {"content":"b","tokens_predicted":-3}\n\n',
            b'data: {"content":"\xc3","tokens_predicted":2}\n\n',
            b'data: {"error":{"code":400,"message":"m","type":"t"}}\n\n',
            b'data: {"stop":true,"stop_type":"limit","tokens_predicted":2}\n\n',
            b'data: {"stop":true,"stop_type":"","tokens_predicted":2}\n\n',
            b"data: " + b"[" * 2000 + b"\n\n",
            b": keep-alive\r\n\r\n",
            b"data:\n",
            b"\r",
        ]
    ),
)


class NoTransport(asyncio.Transport):
    """A connection that is nowhere."""

    def abort(self) -> None:
        """Nothing is open."""


async def read_all(data: bytes, size: int) -> list[Chunk | Finish]:
    stream = ResponseStream()
    stream.connection_made(NoTransport())
    stream.data_received(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for begin in range(0, len(data), size):
        part = data[begin : begin + size]
        stream.data_received(b"%x\r\n%b\r\n" % (len(part), part))
    stream.data_received(b"0\r\n\r\n")
    attempt = Attempt("a/1")
    return [item async for item in read_completion(attempt, stream)]


@settings(deadline=None)
@given(st.lists(FRAMES, max_size=8).map(b"".join), st.integers(1, 64))
def test_any_stream_ends_once_or_in_an_engine_error(data: bytes, size: int) -> None:
    try:
        items = asyncio.run(read_all(data, size))
    except EngineError:
        return
    assert [type(item) for item in items].count(Finish) == 1
    assert isinstance(items[-1], Finish)
    assert all(item.tokens >= 1 for item in items[:-1] if isinstance(item, Chunk))


@given(st.integers(400, 599), st.binary(max_size=200))
def test_any_refusal_is_an_error_of_ours(status: int, body: bytes) -> None:
    assert error_of_response(status, body).info.message


@given(st.binary(max_size=300))
def test_any_metrics_page_can_be_read(page: bytes) -> None:
    assert all(isinstance(value, float) for value in parse_metrics(page).values())
