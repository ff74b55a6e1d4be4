"""The adapter attached to a peer that plays back what the real server sent, whole, broken off and garbled."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from adapters.triton import TritonAdapter
from adapters.triton.adapter import is_shown_exact
from adapters.triton.protocol import ModelConfig
from contracts.api import Sampling
from contracts.engine import Chunk, EngineError, EngineMetrics, EngineSpec, Finish, GenerateRequest

DATA = Path(__file__).with_name("data") / "triton"
MODEL = "/v2/models/llorch_text"
Attach = Callable[..., Awaitable[TritonAdapter]]


def recorded(name: str) -> bytes:
    return (DATA / f"http_{name}.txt").read_bytes()


def json_answer(name: str) -> bytes:
    body = (DATA / name).read_bytes()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
MISSING = b'HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\n\r\n{"error":"nothing"}'


def json_of(value: object) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


PREPROCESSING = json_of({"name": "preprocessing", "max_batch_size": 8})


class Peer:
    """Answers what a Triton server answers; a completion with `stream`, and then the connection ends."""

    def __init__(self, stream: bytes) -> None:
        self.stream = stream
        self.paths: list[str] = []
        self.body = b""
        self.answers = {
            "/v2/health/ready": EMPTY,
            f"{MODEL}/ready": EMPTY,
            f"{MODEL}/config": json_answer("config.json"),
            "/v2": json_answer("metadata.json"),
            "/v2/models/preprocessing/config": PREPROCESSING,
            "/v2/repository/index": json_answer("index.json"),
            "/metrics": json_answer("metrics.txt"),
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        self.paths.append(path)
        length = [line.partition(":")[2] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
        self.body = await reader.readexactly(int(length[0]) if length else 0)
        writer.write(self.stream if path == f"{MODEL}/generate_stream" else self.answers.get(path, MISSING))
        await writer.drain()
        writer.close()


Peers = list[Peer] | None


@pytest.fixture
async def attach(tmp_path: Path) -> AsyncIterator[Attach]:
    servers, adapters = [], []

    async def start(
        stream: bytes,
        *,
        metrics: bool = True,
        answers: dict[str, bytes] | None = None,
        peers: Peers = None,
        **more: Any,
    ) -> TritonAdapter:
        path = str(tmp_path / "peer.sock")
        peer = Peer(stream)
        peer.answers.update(answers or {})
        if peers is not None:
            peers.append(peer)
        if not metrics:
            del peer.answers["/metrics"]
        servers.append(await asyncio.start_unix_server(peer.serve, path))
        spec = EngineSpec(
            engine="triton",
            pool_id="p",
            replica_id="p-0",
            model="llorch_text",
            model_path="",
            ctx=100,
            slots=2,
            accelerator="cpu-dev",
            endpoint=f"unix:{path}",
            args=("--llorch-transport=http", f"--llorch-metrics=unix:{path}"),
        )
        adapter = TritonAdapter(replace(spec, **more))
        adapters.append(adapter)
        await adapter.launch()
        return adapter

    yield start
    for adapter in adapters:
        await adapter.close()
    for server in servers:
        server.close()


async def collect(adapter: TritonAdapter, max_tokens: int = 6) -> list[Chunk | Finish]:
    task = GenerateRequest(task_id="t", max_tokens=max_tokens, seed=7, prompt="Wer hat")
    return [item async for item in adapter.generate("k", task)]


async def broken(adapter: TritonAdapter) -> str:
    with pytest.raises(EngineError) as caught:
        await collect(adapter)
    return caught.value.info.code


@pytest.mark.req("OC-ADAPT-5060", "OC-ADAPT-5070")
async def test_a_recorded_stream_is_played_back(attach: Attach) -> None:
    adapter = await attach(recorded("plain"))
    *chunks, finish = await collect(adapter)
    assert len(chunks) == 6
    assert finish == Finish("length", tokens_in=2)
    properties = await adapter.properties()
    assert (properties.engine_version, properties.slots, properties.ctx) == ("triton 2.51.0", 2, 4096)
    assert properties.model_digest.startswith("sha256:")
    assert (await adapter.metrics()).requests_waiting == 0


@pytest.mark.req("ORCH-3025")
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("fails_first", "INTERNAL"),
        ("fails_later", "INTERNAL"),
        ("too_long", "INVALID_PARAMS"),
        ("nothing", "WORKER_RESET"),
    ],
)
async def test_recorded_failures_are_typed(attach: Attach, name: str, code: str) -> None:
    assert await broken(await attach(recorded(name))) == code


@pytest.mark.req("ORCH-3026")
@pytest.mark.parametrize("missing_bytes", [1, 5, 6, 150, 900])
async def test_a_stream_that_just_stops_is_no_end(attach: Attach, missing_bytes: int) -> None:
    assert await broken(await attach(recorded("plain")[:-missing_bytes])) == "WORKER_RESET"


@pytest.mark.parametrize("garbled", [b'"text_output":7', b'"text_output":"\xff"', b'"text_output":"\\ud800"', b"{{{{"])
async def test_a_frame_that_cannot_be_read_breaks_off(attach: Attach, garbled: bytes) -> None:
    event = b"data: {%b}\n\n" % garbled
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await broken(await attach(head + chunk)) == "WORKER_RESET"


@pytest.mark.req("ORCH-3017")
async def test_a_dead_model_process_is_remembered(attach: Attach) -> None:
    event = b'data: {"error":"Stub process \'llorch_text_0_0\' is not healthy."}\n\n'
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(event)
    adapter = await attach(head + event)
    assert await adapter.healthy()
    assert await broken(adapter) == "WORKER_RESET"
    assert not await adapter.healthy(), "the server still answers its health page"


async def test_a_server_that_keeps_its_metrics_to_itself_is_attached_to(attach: Attach) -> None:
    adapter = await attach(recorded("plain"), metrics=False)
    assert await adapter.metrics() == EngineMetrics(requests_processing=0)
    assert not (await adapter.properties()).interruptible_decode
    assert await collect(adapter)


@pytest.mark.req("ORCH-3057")
async def test_a_model_that_batches_is_asked_with_a_batch_of_one(attach: Attach) -> None:
    counted = json_of({"outputs": [{"name": "REQUEST_INPUT_LEN", "shape": [1, 1], "data": [7]}]})
    peers: list[Peer] = []
    answers = {"/v2/models/preprocessing/infer": counted}
    adapter = await attach(recorded("plain"), answers=answers, peers=peers)
    assert await adapter.count_tokens(GenerateRequest(task_id="t", max_tokens=1, seed=1, prompt="Wer hat")) == 7
    assert {tuple(tensor["shape"]) for tensor in json.loads(peers[0].body)["inputs"]} == {(1, 1)}


@pytest.mark.req("ORCH-3017", "ORCH-3058")
async def test_the_engine_has_let_go_when_a_stop_string_ends_the_text(attach: Attach) -> None:
    """Whoever hears of the end may send the next task at once, though the model was still at work."""
    adapter = await attach(recorded("plain"), slots=1)
    whole = "".join(item.text for item in await collect(adapter) if isinstance(item, Chunk))
    stop = whole[4:8]
    task = GenerateRequest(task_id="t", max_tokens=6, seed=7, prompt="Wer hat", sampling=Sampling(stop=[stop]))
    ends = []
    async for item in adapter.generate("stopped", task):
        if isinstance(item, Finish):
            ends.append(item.stop_sequence)
            assert len(await collect(adapter)) == 7
    assert ends == [stop]


@pytest.mark.req("ORCH-3045")
@pytest.mark.parametrize(
    ("invariant", "tells_release", "determinism", "exact"),
    [
        (None, True, "strict", True),
        (None, False, "strict", False),
        (True, False, "strict", True),
        (True, False, "best_effort", True),
        (None, True, "best_effort", False),
    ],
)
def test_one_at_a_time_is_exact_only_where_the_engine_tells_that_it_let_go(
    invariant: bool | None, tells_release: bool, determinism: Literal["strict", "best_effort"], exact: bool
) -> None:
    spec = EngineSpec(
        engine="triton",
        pool_id="p",
        replica_id="p-0",
        model="m",
        model_path="/m",
        ctx=100,
        slots=2,
        accelerator="cpu-dev",
        batch_invariant=invariant,
        determinism=determinism,
    )
    assert is_shown_exact(spec, ModelConfig(), tells_release=tells_release) is exact


@pytest.mark.req("ORCH-3045")
async def test_an_attached_server_is_as_exact_as_its_model_declares(attach: Attach) -> None:
    properties = await (await attach(b"")).properties()
    assert (properties.slots, properties.exact) == (2, True)


@pytest.mark.req("ORCH-3045")
async def test_an_attached_server_may_serve_others_and_is_not_exact_by_itself(attach: Attach) -> None:
    properties = await (await attach(b"", batch_invariant=False)).properties()
    assert (properties.slots, properties.exact) == (1, False)
