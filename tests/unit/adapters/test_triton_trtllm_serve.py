"""The beta mode `trtllm-serve` against a scripted peer written from its sources. No real one was seen."""

import asyncio
import sys
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from adapters.testing.peers.http import Answer, answer_bytes, chunk, json_answer, read_call, stream_head, streamed
from adapters.triton import TritonAdapter, create
from adapters.triton.trtllm_serve import TrtllmServeAdapter, completion_body, server_arguments
from contracts.api import Message, Sampling
from contracts.engine import Chunk, EngineError, EngineMetrics, EngineSpec, Finish, GenerateRequest

MODE = "--llorch-mode=trtllm-serve"
SPEC = EngineSpec("triton", "p", "p-0", "m", "", 64, 2, "cpu-dev", args=(MODE,), batch_invariant=True)
REQUEST = GenerateRequest(task_id="t", max_tokens=5, seed=1, prompt="Say hi")
#: All that a completion may ask for, of what is sent here.
KNOWN = {
    *("model", "prompt", "max_tokens", "stream", "stream_options", "seed", "stop", "n", "echo", "temperature"),
    *("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("use_beam_search", "length_penalty", "ignore_eos", "min_tokens", "stop_token_ids", "skip_special_tokens"),
    *("include_stop_str_in_output", "spaces_between_special_tokens", "add_special_tokens"),
}


def frame(text: str, tokens: int, reason: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": reason, "stop_reason": None}
    usage = {"prompt_tokens": 3, "total_tokens": 3 + tokens, "completion_tokens": tokens}
    return b"data: " + msgspec.json.encode({"id": "cmpl-1", "choices": [choice], "usage": usage}) + b"\n\n"


USAGE = b'data: {"id":"cmpl-1","choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}\n\n'
STREAM = [frame("Hi", 1), frame(" there", 2, "length"), USAGE, b"data: [DONE]\n\n"]


class Peer:
    def __init__(self) -> None:
        self.stream = streamed(STREAM)
        self.asked: list[dict[str, Any]] = []
        self.broken = False
        self.dropped = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = await read_call(reader)
        answers = {"/health": Answer(200), "/version": json_answer(200, {"version": "1.2.0"})}
        if call.path == "/v1/completions":
            body = msgspec.json.decode(call.body)
            self.asked.append(body)
            failed = answer_bytes(
                json_answer(500, {"object": "error", "message": "CUDA error", "type": "x", "code": 5})
            )
            once = failed if self.broken else answer_bytes(json_answer(200, {"choices": []}))
            writer.write(self.stream if body.get("stream") else once)
        else:
            writer.write(answer_bytes(answers.get(call.path, Answer(404))))
        await writer.drain()
        if self.stream.endswith(b"\n\n\r\n") and call.path == "/v1/completions" and body.get("stream"):
            await reader.read()
            self.dropped.set()
        writer.close()


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    peer = Peer()
    server = await asyncio.start_unix_server(peer.serve, str(tmp_path / "peer"))
    yield peer
    server.close()


@pytest.fixture
async def adapter(peer: Peer, tmp_path: Path) -> AsyncIterator[TrtllmServeAdapter]:
    del peer
    adapter = create(replace(SPEC, endpoint=f"unix:{tmp_path / 'peer'}"))
    assert isinstance(adapter, TrtllmServeAdapter)
    await adapter.launch()
    yield adapter
    await adapter.close()


async def collect(adapter: TrtllmServeAdapter, request: GenerateRequest = REQUEST) -> list[Chunk | Finish]:
    return [item async for item in adapter.generate("k", request)]


@pytest.mark.req("ORCH-3057")
async def test_a_completion_is_asked_for_in_its_own_words(peer: Peer, adapter: TrtllmServeAdapter) -> None:
    assert await collect(adapter) == [Chunk("Hi"), Chunk(" there"), Finish("length", tokens_in=3)]
    assert peer.asked[-1].keys() <= KNOWN
    assert {"prompt": "Say hi", "max_tokens": 5, "stream": True}.items() <= peer.asked[-1].items()


@pytest.mark.req("ORCH-3032", "OC-ADAPT-5070")
async def test_it_says_what_it_is(adapter: TrtllmServeAdapter) -> None:
    properties = await adapter.properties()
    assert (properties.engine_version, properties.slots, properties.ctx) == ("trtllm-serve 1.2.0", 2, 64)
    assert await adapter.metrics() == EngineMetrics()
    assert await adapter.healthy()
    with pytest.raises(EngineError, match="cannot count"):
        await adapter.count_tokens(REQUEST)


@pytest.mark.req("ORCH-3025", "ORCH-3026")
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (streamed(STREAM[:2]), "WORKER_RESET"),
        (streamed(STREAM)[:-60], "WORKER_RESET"),
        (answer_bytes(json_answer(400, {"message": "prompt too long", "type": "BadRequestError"})), "INVALID_PARAMS"),
        (answer_bytes(Answer(400, b"not json")), "INVALID_PARAMS"),
        (answer_bytes(Answer(503)), "POOL_UNREADY"),
        (b"", "WORKER_RESET"),
    ],
)
async def test_failures_are_typed_and_bear_this_engines_name(
    peer: Peer, adapter: TrtllmServeAdapter, answer: bytes, code: str
) -> None:
    peer.stream = answer
    with pytest.raises(EngineError) as caught:
        await collect(adapter)
    assert (caught.value.info.code, caught.value.info.engine) == (code, "triton")


@pytest.mark.req("ORCH-3017")
async def test_a_cancel_drops_the_connection_and_no_text_follows(peer: Peer, adapter: TrtllmServeAdapter) -> None:
    peer.stream = stream_head() + chunk(STREAM[0])
    items = []
    async for item in adapter.generate("k", REQUEST):
        items.append(item)
        await adapter.cancel("k")
    assert items == [Chunk("Hi")]
    await asyncio.wait_for(peer.dropped.wait(), 5)


async def test_a_server_that_cannot_compute_is_not_ready(peer: Peer, tmp_path: Path) -> None:
    peer.broken = True
    with pytest.raises(EngineError, match=r"POOL_UNREADY.*CUDA error"):
        await create(replace(SPEC, endpoint=f"unix:{tmp_path / 'peer'}")).launch()


@pytest.mark.parametrize(
    "request_", [replace(REQUEST, prompt=""), replace(REQUEST, prompt=None, messages=[Message("user", "hi")])]
)
def test_what_it_cannot_be_asked_is_refused(request_: GenerateRequest) -> None:
    with pytest.raises(EngineError, match="needs a `prompt`"):
        completion_body(SPEC, "k", request_)


def test_no_field_is_sent_that_it_refuses() -> None:
    sampling = Sampling(temperature=0.5, stop=["x"], min_p=0.1)
    assert completion_body(SPEC, "k", replace(REQUEST, sampling=sampling)).keys() <= KNOWN


def test_the_mode_decides_which_adapter_is_made() -> None:
    assert type(create(replace(SPEC, args=()))) is TritonAdapter
    with pytest.raises(EngineError, match="runs tritonserver"):
        TritonAdapter(SPEC)
    with pytest.raises(EngineError, match="completions only"):
        create(replace(SPEC, workload="embedding"))


def test_it_is_started_on_the_loopback_for_as_many_as_run_at_once() -> None:
    spec = replace(SPEC, model_path="/models/m", accelerator="gpu", devices=("0", "1"), args=("--backend=pytorch",))
    arguments = server_arguments(spec, 5000)
    assert arguments[:6] == ["serve", "/models/m", "--host", "127.0.0.1", "--port", "5000"]
    told = dict(pairwise(arguments))
    assert (told["--max_batch_size"], told["--max_seq_len"], told["--tp_size"]) == ("2", "64", "2")
    assert arguments[-1] == "--backend=pytorch"


@pytest.mark.req("ORCH-3001")
async def test_it_is_launched_and_one_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="there is no trtllm-serve"):
        await create(SPEC).launch()
    program = tmp_path / "trtllm-serve"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no GPU here')\n")
    program.chmod(0o755)
    with pytest.raises(EngineError, match="no GPU here"):
        await create(SPEC).launch()
