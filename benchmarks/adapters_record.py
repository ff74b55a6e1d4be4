"""Streams of engines as they came over the wire, kept beside the benchmark, and how to record them anew."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from adapters.engine_server import EngineServer
from adapters.exchange import ResponseStream
from adapters.http_client import EngineClient
from adapters.testing.conformance.engines import SLOW_SUBJECTS, SUBJECTS
from benchmarks.adapters_grpc import kept_connections, split_frames
from contracts.engine import GenerateRequest

FOLDER: Final = Path(__file__).with_name("recordings")
#: Engine to the path of its generations, and to the engine that really runs when its stream is recorded.
RECORDINGS: Final[dict[str, tuple[str, str]]] = {
    "llamacpp": ("/completion", "llamacpp"),
    "vllm": ("/v1/completions", "vllm"),
    "tgi": ("/generate_stream", "tgi"),
    "triton": ("/v2/models/m/generate_stream", "triton-http"),
    "triton-grpc": ("", "triton"),
}
#: The one whose recording is a connection of HTTP/2 and not a stream of events.
GRPC: Final = "triton-grpc"
TOKENS: Final = 200
_REQUEST: Final = GenerateRequest(task_id="record", max_tokens=TOKENS, seed=3, prompt="Once upon a time")


class _Tee:
    """A response whose bytes are kept as they are read."""

    def __init__(self, response: ResponseStream, kept: list[bytes]) -> None:
        self._response = response
        self._kept = kept
        self.status = response.status
        self.content_type = response.content_type

    async def read(self) -> bytes:
        data = await self._response.read()
        self._kept.append(data)
        return data

    def close(self) -> None:
        self._response.close()


class _Recorder(EngineClient):
    """A client that keeps what its streams say."""

    kept: list[bytes]

    async def open(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Any:
        return _Tee(await super().open(path, body, headers), self.kept)


async def record(engine: str) -> int:
    """Run the real engine, keep one stream of it, and return how many frames that has."""
    make = (SUBJECTS | SLOW_SUBJECTS)[RECORDINGS[engine][1]]
    subject = make()
    adapter = subject.create(subject.spec)
    assert isinstance(adapter, EngineServer)
    await adapter.launch()
    try:
        client = adapter._client
        assert client is not None
        client.__class__ = _Recorder
        assert isinstance(client, _Recorder)
        client.kept = []
        with kept_connections() as connection:
            async for _ in adapter.generate("record/1", _REQUEST):
                pass
        stream = b"".join(client.kept or connection)
    finally:
        await adapter.close()
    FOLDER.mkdir(exist_ok=True)
    _file(engine).write_bytes(stream)
    return len(recorded_frames(engine))


def _file(engine: str) -> Path:
    return FOLDER / (f"{engine}.h2" if engine == GRPC else f"{engine}.sse")


def recorded_frames(engine: str) -> list[bytes]:
    """The events of the recorded stream, each with the empty line that ends it; of a connection, its frames."""
    stream = _file(engine).read_bytes()
    if engine == GRPC:
        return split_frames(stream)
    return [frame + b"\n\n" for frame in stream.split(b"\n\n") if frame]
