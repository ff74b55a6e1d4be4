"""Completions over gRPC against a scripted peer: recorded streams, broken ones, cancels, a reader that is slow."""

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from adapters.attempts import Attempt
from adapters.exchange import Address
from adapters.triton.frames import Frame
from adapters.triton.grpc_stream import GrpcClient, MessageSplitter, read_grpc
from adapters.triton.http2 import frames
from adapters.triton.http2.exchange import WINDOW_BYTES
from adapters.triton.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, frame
from adapters.triton.http2.stream import Http2Stream
from adapters.triton.wire import MESSAGE_BYTES_MAX, WireError
from contracts.engine import EngineError

DATA_FOLDER = Path(__file__).with_name("data") / "triton"
HELLO = frame(SETTINGS, 0, 0)


def recorded(name: str) -> list[bytes]:
    return [bytes.fromhex(line) for line in (DATA_FOLDER / f"grpc_{name}.txt").read_text().split()]


def head(status: str = "200", kind: str = "application/grpc", flags: int = END_HEADERS, **more: str) -> bytes:
    fields = [(":status", status), ("content-type", kind), *((name.replace("_", "-"), more[name]) for name in more)]
    return frame(HEADERS, flags, 1, Encoder().encode(fields))


def trailers(status: str = "0", message: str = "") -> bytes:
    fields = [("grpc-status", status), ("grpc-message", message)]
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, Encoder().encode(fields))


def prefixed(message: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(message)) + message


def data(content: bytes) -> bytes:
    return b"".join(frame(DATA, 0, 1, content[at : at + 16_384]) for at in range(0, len(content), 16_384))


def played(name: str) -> bytes:
    return HELLO + head() + b"".join(data(prefixed(message)) for message in recorded(name)) + trailers()


class Peer:
    """Plays `scene` to whoever connects, in parts of `step` bytes, then ends if it is told to."""

    def __init__(self) -> None:
        self.scene = b""
        self.step = 0
        self.ends = True
        self.received = b""
        self.gone = asyncio.Event()
        self.address = Address()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        step = self.step or len(self.scene)
        try:
            for at in range(0, len(self.scene), step):
                writer.write(self.scene[at : at + step])
                await writer.drain()
                await asyncio.sleep(0)
            if self.ends:
                writer.write_eof()
            while part := await reader.read(65_536):
                self.received += part
        except ConnectionError:
            pass
        finally:
            self.gone.set()
            writer.close()


@pytest.fixture(params=["unix", "tcp"])
async def peer(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Peer]:
    peer = Peer()
    if request.param == "unix":
        path = str(tmp_path / "grpc")
        server = await asyncio.start_unix_server(peer.serve, path)
        peer.address = Address(socket_path=path)
    else:
        server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
        peer.address = Address(port=server.sockets[0].getsockname()[1])
    yield peer
    server.close()


async def ask(peer: Peer, attempt: Attempt | None = None) -> list[Frame]:
    """All that the peer says, as the adapter reads it."""
    attempt = attempt or Attempt("a")
    stream = await attempt.run(attempt.keep(GrpcClient(peer.address, "secret").open(b"request")))
    assert stream is not None
    try:
        return [frame async for frames in read_grpc(attempt, stream) for frame in frames]
    finally:
        stream.close()


async def refused(peer: Peer) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await asyncio.wait_for(ask(peer), 10)
    return caught.value


@pytest.mark.req("OC-ADAPT-5060")
@pytest.mark.parametrize("step", [0, 1, 7, 100])
async def test_a_recorded_stream_is_read_whatever_way_it_comes(peer: Peer, step: int) -> None:
    peer.scene, peer.step = played("plain"), step
    *texts, last = await ask(peer)
    assert [frame.tokens for frame in texts] == [1] * 6
    assert last.final


@pytest.mark.req("OC-ADAPT-5060")
async def test_the_request_says_what_is_asked_and_who_asks(peer: Peer) -> None:
    peer.scene = played("plain")
    await ask(peer)
    await asyncio.wait_for(peer.gone.wait(), 10)
    sent = peer.received[len(frames.PREFACE) :]
    at, found = 0, {}
    while at < len(sent):
        size = int.from_bytes(sent[at : at + 3], "big")
        found[sent[at + 3]] = sent[at + 9 : at + 9 + size]
        at += 9 + size
    fields = dict(Decoder().decode(found[HEADERS]))
    assert fields[":path"] == "/inference.GRPCInferenceService/ModelStreamInfer"
    assert (fields["content-type"], fields["te"]) == ("application/grpc", "trailers")
    assert fields["authorization"] == "Bearer secret"
    assert found[DATA] == prefixed(b"request")


@pytest.mark.req("ORCH-3026")
@pytest.mark.parametrize("cut", [1, 5, 9, 30, 45, 200, 400, 900])
async def test_a_stream_that_just_stops_is_no_end(peer: Peer, cut: int) -> None:
    peer.scene = b"".join([HELLO, head(), *(data(prefixed(message)) for message in recorded("plain"))])[:-cut]
    assert (await refused(peer)).info.code == "WORKER_RESET"


@pytest.mark.req("ORCH-3025", "ORCH-3026")
@pytest.mark.parametrize(
    ("scene", "code", "told"),
    [
        (HELLO + head() + trailers(), "WORKER_RESET", "before it was complete"),
        (HELLO + head() + trailers("14", "so%20sorry %E2%82%AC"), "WORKER_RESET", "so sorry €"),
        (HELLO + head() + trailers("3", "bad"), "INVALID_PARAMS", "bad"),
        (HELLO + head(flags=END_HEADERS | END_STREAM, grpc_status="16"), "INTERNAL", "key"),
        (HELLO + head() + trailers("nonsense"), "WORKER_RESET", "no outcome"),
        (HELLO + head() + trailers("9" * 400), "WORKER_RESET", "no outcome"),
        (HELLO + head() + frame(DATA, END_STREAM, 1), "WORKER_RESET", "no outcome"),
        (HELLO + head("404", "text/html") + data(b"<html>"), "WORKER_RESET", "no gRPC service"),
        (HELLO + head() + data(prefixed(b"x", 1)), "WORKER_RESET", "compressed"),
        (HELLO + head() + data(struct.pack(">BI", 0, MESSAGE_BYTES_MAX + 1)), "WORKER_RESET", "too long"),
        (HELLO + head() + data(prefixed(b"\xff\xff")), "WORKER_RESET", "cannot be read"),
        (HELLO + head() + data(b"".join(map(prefixed, recorded("plain") * 2))), "WORKER_RESET", "after its end"),
        (HELLO + head() + frames.reset(1, 2), "WORKER_RESET", "INTERNAL_ERROR"),
        (HELLO + frame(frames.GOAWAY, 0, 0, bytes(8)), "WORKER_RESET", "no more requests"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "WORKER_RESET", "does not speak HTTP/2"),
        (b"", "WORKER_RESET", "broke"),
    ],
)
async def test_what_breaks_a_call_is_typed(peer: Peer, scene: bytes, code: str, told: str) -> None:
    peer.scene = scene
    error = await refused(peer)
    assert error.info.code == code
    assert told in error.info.message


async def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be reached"):
        await GrpcClient(Address(socket_path=str(tmp_path / "nothing"))).open(b"request")


@pytest.mark.req("ORCH-3017", "ORCH-3026")
async def test_a_cancel_tells_the_server_and_ends_the_reading(peer: Peer) -> None:
    peer.scene, peer.ends = HELLO + head() + data(prefixed(recorded("plain")[0])), False
    attempt = Attempt("a")
    asking = asyncio.create_task(ask(peer, attempt))
    async with asyncio.timeout(10):
        while b"request" not in peer.received or attempt.response is None:
            await asyncio.sleep(0.01)
        attempt.stop()
        assert attempt.response is not None
        attempt.response.close()
        attempt.response.close()
        assert len(await asking) <= 1
        await peer.gone.wait()
    assert peer.received.endswith(frame(RST_STREAM, 0, 1, struct.pack(">I", frames.CANCEL)))


async def test_a_slow_reader_holds_the_server_back(peer: Peer) -> None:
    peer.scene, peer.ends = HELLO + head() + data(bytes(WINDOW_BYTES)), False
    stream = await GrpcClient(peer.address).open(b"request")
    async with asyncio.timeout(10):
        while stream._exchange._window:
            await asyncio.sleep(0.01)
        quiet = len(peer.received)
        assert len(await stream.read()) == WINDOW_BYTES
        while len(peer.received) == quiet:
            await asyncio.sleep(0.01)
    stream.close()


async def test_a_server_that_asks_and_does_not_listen_is_let_go(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO + frame(PING, 0, 0, bytes(8)) * 400_000)
        try:
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
        del reader

    path = str(tmp_path / "grpc")
    server = await asyncio.start_unix_server(serve, path, limit=16)
    stream = await GrpcClient(Address(socket_path=path)).open(b"request")
    with pytest.raises(ConnectionError, match="does not listen"):
        await asyncio.wait_for(stream.read(), 30)
    stream.close()
    server.close()


async def test_reading_after_a_close_is_an_error(peer: Peer) -> None:
    peer.scene, peer.ends = HELLO + head(), False
    stream: Http2Stream = await GrpcClient(peer.address).open(b"request")
    stream.close()
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(stream.read(), 10)


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_messages_are_the_same_wherever_their_bytes_are_cut(messages: list[bytes], draw: st.DataObject) -> None:
    stream = b"".join(map(prefixed, messages))
    splitter, found, at = MessageSplitter(), [], 0
    while at < len(stream):
        step = draw.draw(st.integers(1, 30))
        found += splitter.feed(stream[at : at + step])
        at += step
    assert found == messages


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_noise_is_split_or_refused(parts: list[bytes]) -> None:
    splitter = MessageSplitter()
    try:
        for part in parts:
            splitter.feed(part)
    except WireError:
        return
