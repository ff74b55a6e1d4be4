"""The peer of the adapters' benchmark: `python -m benchmarks.adapters_peer ENGINE STEP_S` plays a recorded stream."""

import asyncio
import sys

import uvloop

from adapters.testing.conformance.engines import DIALECTS
from adapters.testing.conformance.peer import Pause, Step, WirePeer
from adapters.testing.peers.http import chunk, stream_head
from benchmarks.adapters_grpc import GrpcDialect, serve_frames
from benchmarks.adapters_record import GRPC, recorded_frames


async def serve(engine: str, step_s: float) -> None:
    """Play the stream to whoever asks, a frame at a time with `step_s` between them, until killed."""
    if engine == GRPC:
        calls = WirePeer(GrpcDialect())
        await calls.listen()
        print(calls.endpoint, await serve_frames(recorded_frames(engine), step_s), flush=True)
        await asyncio.Event().wait()
    peer = WirePeer(DIALECTS[engine]())
    await peer.listen()
    scene: list[Step] = [stream_head()]
    for frame in recorded_frames(engine):
        scene += [Pause(step_s), chunk(frame)] if step_s else [chunk(frame)]
    peer.scene = [*scene, b"0\r\n\r\n"]
    print(peer.endpoint, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], float(sys.argv[2])))
