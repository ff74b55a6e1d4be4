"""Triton over gRPC for the adapters' benchmark: a recorded connection, frame by frame, and what plays it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from msgspec.structs import replace

from adapters.testing.conformance.dialects.triton import TritonDialect
from adapters.triton.http2.frames import HEAD, HEAD_BYTES
from adapters.triton.http2.stream import Http2Stream
from contracts.engine import EngineSpec


class GrpcDialect(TritonDialect):
    """Triton's dialect with completions over gRPC. An endpoint here is two: HTTP's, a blank, and gRPC's address."""

    def spec(self, endpoint: str) -> EngineSpec:
        http, _, grpc = endpoint.partition(" ")
        spec = super().spec(http)
        metrics = [argument for argument in spec.args if argument.startswith("--llorch-metrics")]
        return replace(spec, args=(*metrics, f"--llorch-grpc={grpc}"))


@contextmanager
def kept_connections() -> Iterator[list[bytes]]:
    """Keeps what servers send over HTTP/2 meanwhile."""
    kept: list[bytes] = []
    original = Http2Stream.data_received

    def keep(stream: Http2Stream, data: bytes) -> None:
        kept.append(data)
        original(stream, data)

    with patch.object(Http2Stream, "data_received", keep):
        yield kept


def split_frames(connection: bytes) -> list[bytes]:
    """The whole frames of what one side sent."""
    frames, at = [], 0
    while at + HEAD_BYTES <= len(connection):
        size_and_kind, _, _ = HEAD.unpack_from(connection, at)
        after = at + HEAD_BYTES + (size_and_kind >> 8)
        frames.append(connection[at:after])
        at = after
    return frames


async def serve_frames(frames: list[bytes], step_s: float) -> str:
    """Play the frames to every connection, once it has said something, `step_s` apart. Returns the address."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(65536)
            for frame in frames:
                if step_s:
                    await asyncio.sleep(step_s)
                writer.write(frame)
                await writer.drain()
                # Twice, so that what was written is read on its own before more follows.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    # Whoever plays frames does so until the process ends.
    asyncio.ensure_future(server.serve_forever()).add_done_callback(lambda _: None)
    host, port = server.sockets[0].getsockname()[:2]
    return f"{host}:{port}"
