"""What an adapter costs: CPU time of the replica's process for a token, from the socket to the chunk.

Streams recorded from each engine (`benchmarks/recordings`, made by `--record`) are played to the real adapter by a
peer in another process, over a real connection, each frame written on its own:

- `rush`: as fast as the peer can write, which is what a busy replica sees;
- `paced`: all streams make a token every 20 ms, as an engine does that batches; between the steps the process sleeps,
  and waking up is part of the cost. `bare` is the same without an adapter: reading those sockets and nothing else.

TGI's stream was recorded from the peer written from its OpenAPI: no TGI can be installed.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

#: Run as a script, this folder comes first on the path, and its `adapters` hides the package.
ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:] = [str(ROOT), *(place for place in sys.path if place not in (str(ROOT), str(ROOT / "benchmarks")))]

from adapters.testing.conformance.dialect import Dialect  # noqa: E402
from adapters.testing.conformance.engines import DIALECTS  # noqa: E402
from benchmarks.adapters_grpc import GrpcDialect  # noqa: E402
from benchmarks.adapters_record import GRPC, RECORDINGS, record, recorded_frames  # noqa: E402
from benchmarks.limits import load_limits, shortfalls  # noqa: E402
from contracts.engine import Chunk, EngineAdapter, Finish, GenerateRequest  # noqa: E402

DIALECTS_HERE: Final[dict[str, Callable[[], Dialect]]] = {**DIALECTS, GRPC: GrpcDialect}
STREAMS: Final = 16
ROUNDS: Final = 5
STEP_S: Final = 0.02
#: As an attempt on a replica asks; the peer plays the same stream to all.
REQUEST: Final = GenerateRequest(task_id="cost", max_tokens=100_000, seed=1, prompt="one two three")


async def peer_of(engine: str, step_s: float) -> tuple[asyncio.subprocess.Process, str]:
    """A peer in a process of its own, and where it listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.adapters_peer", engine, str(step_s), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    endpoint = (await process.stdout.readline()).decode().strip()
    if not endpoint:
        raise RuntimeError(f"the peer for {engine} did not start")
    return process, endpoint


async def end_of(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    await process.wait()


async def adapter_reads(adapter: EngineAdapter, key: str) -> int:
    """Tokens of one stream, as a replica takes them."""
    tokens = 0
    async for item in adapter.generate(key, REQUEST):
        if type(item) is Chunk:
            tokens += item.tokens
        elif type(item) is Finish:
            return tokens
    raise RuntimeError("the stream had no end")


class Bare(asyncio.Protocol):
    """Reads a socket to `end` and looks at nothing."""

    def __init__(self, end: bytes) -> None:
        self._end = end
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if data.endswith(self._end) and not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(exc or ConnectionError("the peer went away"))


async def bare_reads(endpoint: str, path: str, end: bytes) -> None:
    host, port = endpoint.rpartition(" ")[2].removeprefix("http://").split(":")
    transport, reader = await asyncio.get_running_loop().create_connection(lambda: Bare(end), host, int(port))
    body = b'{"stream":true}'  # which some peers want to see
    transport.write(f"POST {path} HTTP/1.1\r\nHost: peer\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await reader.ended
    transport.close()


async def cost_us(reads: Sequence[Callable[[], Awaitable[object]]], tokens: int) -> float:
    """Microseconds of this process' CPU time for a token while all streams are read at once."""
    begin = time.process_time_ns()
    await asyncio.gather(*(read() for read in reads))
    return (time.process_time_ns() - begin) / 1000 / (len(reads) * tokens)


async def measure(engine: str, dialect: Dialect, step_s: float) -> dict[str, float]:
    """Medians over interleaved rounds: `adapter` and `bare`."""
    process, endpoint = await peer_of(engine, step_s)
    adapter = dialect.create(dialect.spec(endpoint))
    try:
        await adapter.launch()
        tokens = await adapter_reads(adapter, "warm-up")
        path = RECORDINGS[engine][0]
        end = recorded_frames(engine)[-1] if engine == GRPC else b"0\r\n\r\n"
        found: dict[str, list[float]] = {"adapter": [], "bare": []}
        for number in range(ROUNDS):
            through = [partial(adapter_reads, adapter, f"{number}-{n}") for n in range(STREAMS)]
            found["adapter"].append(await cost_us(through, tokens))
            found["bare"].append(await cost_us([lambda: bare_reads(endpoint, path, end)] * STREAMS, tokens))
    finally:
        await adapter.close()
        await end_of(process)
    return {name: statistics.median(values) for name, values in found.items()}


async def run(engines: list[str]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for engine in engines:
        for load, step_s in (("rush", 0.0), ("paced", STEP_S)):
            for name, value in (await measure(engine, DIALECTS_HERE[engine](), step_s)).items():
                figures[f"{engine}/{load}/{name}_us"] = value
    return figures


def main() -> int:
    parser = argparse.ArgumentParser("python benchmarks/adapters.py", description=__doc__.splitlines()[0])
    parser.add_argument("--engine", action="append", choices=sorted(RECORDINGS), help="only this one; may be repeated")
    parser.add_argument("--check", action="store_true", help="end with status 1 where a limit is missed")
    parser.add_argument("--record", action="store_true", help="record the streams anew, from the engines themselves")
    arguments = parser.parse_args()
    engines = arguments.engine or sorted(RECORDINGS)
    if arguments.record:
        for engine in engines:
            frames = uvloop.run(record(engine))
            print(f"{engine}: {frames} frames")
        return 0
    figures = uvloop.run(run(engines))
    print(f"CPU time a token in µs, {STREAMS} streams at once, medians of {ROUNDS} rounds")
    print(f"{'engine':<12} {'load':<6} {'adapter':>8} {'bare':>8}")
    for engine in engines:
        for load in ("rush", "paced"):
            adapter, bare = (figures[f"{engine}/{load}/{name}_us"] for name in ("adapter", "bare"))
            print(f"{engine:<12} {load:<6} {adapter:>8.1f} {bare:>8.1f}")
    limits = {name: limit for name, limit in load_limits("adapters").items() if name.partition("/")[0] in engines}
    missed = shortfalls(figures, limits)
    print("\n".join(missed) or "all limits hold")
    return 1 if missed and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
