"""The adapter attached to a scripted server that answers as a real vLLM did."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from adapters.testing.peers.http import Answer, Call, answer_bytes, chunk, json_answer, read_call, stream_head, streamed
from adapters.vllm import VllmAdapter
from contracts.api import Message
from contracts.engine import Chunk, EngineError, EngineSpec, Finish, GenerateRequest

DATA = Path(__file__).parent / "data" / "vllm"
MODEL = "smollm2-135m-instruct"


def recorded(name: str) -> tuple[int, str, bytes]:
    exchange = msgspec.json.decode((DATA / f"{name}.json").read_bytes())
    return exchange["status"], exchange["content_type"], exchange["body"].encode()


def answer(name: str) -> bytes:
    status, content_type, body = recorded(name)
    if content_type == "text/event-stream":
        return streamed([body])
    return answer_bytes(Answer(status, body, content_type))


class Server:
    """Answers by path, with what a test puts there; keeps the calls. `stuck` streams never end by themselves."""

    def __init__(self) -> None:
        self.answers = {
            "/health": answer_bytes(Answer(200)),
            "/version": answer("version"),
            "/v1/models": answer("models"),
            "/metrics": answer("metrics"),
            "/tokenize": answer("tokens"),
            "/v1/completions": answer("stream"),
            "/v1/embeddings": answer("embeddings"),
            "/v1/score": answer("scores"),
        }
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.stuck = False
        self.dropped = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            call = await read_call(reader)
            body = msgspec.json.decode(call.body) if call.body else {}
            self.calls.append((call.path, body))
            if self.stuck and body.get("stream"):
                writer.write(stream_head() + chunk(recorded("stream")[2].partition(b"\n\n")[0] + b"\n\n"))
                await reader.read()
                self.dropped.set()
            else:
                writer.write(self._answer(call, body))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _answer(self, call: Call, body: dict[str, Any]) -> bytes:
        if call.path == "/v1/completions" and not body.get("stream"):
            return json_answer_bytes({"choices": []})
        return self.answers[call.path]


def json_answer_bytes(body: object) -> bytes:
    return answer_bytes(json_answer(200, body))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    scripted = Server()
    listening = await asyncio.start_unix_server(scripted.serve, str(tmp_path / "s"))
    yield scripted
    listening.close()
    await listening.wait_closed()


Attach = Callable[..., Awaitable[VllmAdapter]]


@pytest.fixture
async def attach(server: Server, tmp_path: Path) -> AsyncIterator[Attach]:
    assert server.calls == []
    adapters = []

    async def start(**changes: Any) -> VllmAdapter:
        fields: dict[str, Any] = {
            "model": MODEL,
            "ctx": 256,
            "slots": 2,
            "ready_timeout_ms": 5000,
            "endpoint": f"unix:{tmp_path / 's'}",
        }
        fields |= changes
        spec = EngineSpec(engine="vllm", pool_id="p", replica_id="p-0", model_path="", accelerator="cpu-dev", **fields)
        adapter = VllmAdapter(spec)
        adapters.append(adapter)
        await adapter.launch()
        return adapter

    yield start
    for adapter in adapters:
        await adapter.close()


def request(**changes: Any) -> GenerateRequest:
    fields: dict[str, Any] = {"task_id": "t", "max_tokens": 6, "seed": 7, "prompt": "The capital of France is"}
    return GenerateRequest(**(fields | changes))


async def collect(adapter: VllmAdapter, key: str, what: GenerateRequest) -> list[Chunk | Finish]:
    return [item async for item in adapter.generate(key, what)]


@pytest.mark.req("OC-ADAPT-5030", "ORCH-3055", "ORCH-3032")
async def test_it_is_what_the_server_says(attach: Attach, server: Server) -> None:
    adapter = await attach()
    properties = await adapter.properties()
    assert (properties.engine_version, properties.ctx, properties.slots) == ("vllm 0.32.0", 256, 1)
    # Who else uses it, and how it was started, is not known.
    assert not properties.exact
    assert (await (await attach(batch_invariant=True, slots=1)).properties()).exact
    assert not properties.keeps_kv
    # Before it counted as ready it computed once.
    assert ("/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 1, "temperature": 0.0}) in server.calls
    assert (await adapter.metrics()).requests_processing == 0
    assert await adapter.healthy()
    assert (await adapter.memory_need()).weights_bytes == 0


@pytest.mark.req("ORCH-3045")
async def test_a_pool_without_promises_uses_all_slots(attach: Attach) -> None:
    properties = await (await attach(determinism="best_effort")).properties()
    assert (properties.slots, properties.exact) == (2, False)


@pytest.mark.req("OC-ADAPT-5001", "ORCH-3058")
async def test_a_text_is_streamed(attach: Attach, server: Server) -> None:
    adapter = await attach()
    items = await collect(adapter, "a/1", request())
    assert items[0] == Chunk(" Paris")
    assert items[-1] == Finish("length", tokens_in=5)
    path, body = server.calls[-1]
    assert (path, body["prompt"], body["stream"], body["request_id"]) == (
        "/v1/completions",
        request().prompt,
        True,
        "a/1",
    )
    # Its slot is free at once.
    assert await collect(adapter, "a/2", request()) == items


async def test_a_conversation_goes_as_the_models_template_has_it(attach: Attach, server: Server) -> None:
    server.answers["/tokenize"] = answer("templated")
    adapter = await attach()
    conversation = request(prompt=None, messages=[Message("user", "Hi")])
    tokens = msgspec.json.decode(recorded("templated")[2])["tokens"]
    assert await adapter.count_tokens(conversation) == len(tokens)
    await collect(adapter, "a/1", conversation)
    assert server.calls[-1][1]["prompt"] == tokens
    assert server.calls[-2] == (
        "/tokenize",
        {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": True},
    )


async def test_tokens_are_counted_by_the_engine(attach: Attach) -> None:
    assert await (await attach()).count_tokens(request()) == 5


async def test_nothing_to_go_on_is_refused(attach: Attach) -> None:
    adapter = await attach()
    with pytest.raises(EngineError, match="give a prompt") as refused:
        await collect(adapter, "a/1", request(prompt=""))
    assert refused.value.info.code == "INVALID_PARAMS"


@pytest.mark.req("ORCH-3025")
async def test_a_refusal_leaves_the_slot_free(attach: Attach, server: Server) -> None:
    adapter = await attach()
    for refusal in ("too-long", "stream-error"):
        server.answers["/v1/completions"] = answer(refusal)
        with pytest.raises(EngineError) as refused:
            await collect(adapter, "a/1", request())
        assert refused.value.info.code == "INVALID_PARAMS"
    server.answers["/v1/completions"] = answer("stream")
    assert len(await collect(adapter, "a/1", request())) == 7


@pytest.mark.req("ORCH-3017", "ORCH-3019")
async def test_a_cancel_closes_the_connection_and_waits_for_the_engine(attach: Attach, server: Server) -> None:
    adapter = await attach()
    server.stuck = True
    items = adapter.generate("a/1", request())
    assert await anext(items) == Chunk(" Paris")
    with pytest.raises(EngineError, match="all 1 slots are taken") as refused:
        await collect(adapter, "a/2", request())
    assert refused.value.info.code == "REPLICA_EXHAUSTED"
    computed = len(server.calls)
    await adapter.cancel("a/1")
    assert server.dropped.is_set()
    # It computed for somebody else since.
    assert [path for path, _ in server.calls[computed:]] == ["/v1/completions"]
    assert [item async for item in items] == []
    server.stuck = False
    assert len(await collect(adapter, "a/2", request())) == 7


@pytest.mark.req("ORCH-3026")
async def test_a_broken_stream_is_a_reset(attach: Attach, server: Server) -> None:
    adapter = await attach()
    server.answers["/v1/completions"] = stream_head() + chunk(recorded("stream")[2][:600])
    with pytest.raises(EngineError) as reset:
        await collect(adapter, "a/1", request())
    assert (reset.value.info.code, reset.value.info.retriable) == ("WORKER_RESET", True)


@pytest.mark.req("ORCH-3003")
async def test_another_model_is_not_served_for_ours(attach: Attach) -> None:
    with pytest.raises(EngineError, match="serves 'smollm2-135m-instruct' and not 'another'") as refused:
        await attach(model="another")
    assert refused.value.kind == "model"


@pytest.mark.req("ORCH-3037")
async def test_a_digest_that_cannot_be_checked_is_refused(attach: Attach) -> None:
    with pytest.raises(EngineError, match=r"cannot be checked.*take out `model_digest`") as refused:
        await attach(model_digest=f"sha256:{'0' * 64}")
    assert (refused.value.info.code, refused.value.kind) == ("POOL_UNREADY", "model")
    told = (await (await attach()).properties()).model_digest
    assert (await (await attach(model_digest=told)).properties()).model_digest == told


@pytest.mark.parametrize(
    ("workload", "path", "asked"),
    [
        ("embedding", "/v1/embeddings", {"input": "a"}),
        ("rerank", "/v1/score", {"queries": "a", "documents": ["a"]}),
    ],
)
async def test_readiness_asks_by_the_route_that_the_pool_uses(
    attach: Attach, server: Server, workload: str, path: str, asked: dict[str, Any]
) -> None:
    await attach(workload=workload)
    assert server.calls[-1] == (path, {"model": MODEL, **asked})
    assert {each for each, _ in server.calls} == {"/health", "/v1/models", path}


async def test_health_without_computing_is_not_ready(attach: Attach, server: Server) -> None:
    server.answers["/v1/embeddings"] = answer_bytes(json_answer(500, {"error": {"message": "boom", "code": 500}}))
    with pytest.raises(EngineError, match=r"cannot compute.*boom") as refused:
        await attach(workload="embedding")
    assert refused.value.info.code == "POOL_UNREADY"


@pytest.mark.req("ORCH-3044")
async def test_embeddings_are_the_engines_own_digits(attach: Attach, server: Server) -> None:
    adapter = await attach(workload="embedding", determinism="best_effort")
    texts = ["Paris is the capital.", "I like dogs"]
    items = await collect(adapter, "a/1", request(workload="embedding", prompt=None, inputs=texts))
    body = recorded("embeddings")[2]
    assert [type(item) for item in items] == [Chunk, Chunk, Finish]
    for item in items[:-1]:
        assert isinstance(item, Chunk)
        assert item.text.encode() in body
        assert len(msgspec.json.decode(item.text, type=list[float])) == 576
    assert items[-1] == Finish("stop", tokens_in=8)
    assert server.calls[-1] == ("/v1/embeddings", {"model": MODEL, "input": texts, "encoding_format": "float"})
    # Each text is counted, here with the recorded answer.
    assert await adapter.count_tokens(request(workload="embedding", prompt=None, inputs=texts)) == 10


@pytest.mark.req("ORCH-3044")
async def test_many_texts_go_in_groups(attach: Attach, server: Server) -> None:
    adapter = await attach(workload="embedding", determinism="best_effort")
    one = {"index": 0, "embedding": [0.5, -1e-07]}
    group = [one | {"index": n} for n in range(32)]
    server.answers["/v1/embeddings"] = json_answer_bytes({"data": group, "usage": {"prompt_tokens": 64}})
    items = await collect(adapter, "a/1", request(workload="embedding", prompt=None, inputs=["a"] * 64))
    assert items == [Chunk("[0.5,-1e-7]")] * 64 + [Finish("stop", tokens_in=128)]


@pytest.mark.req("ORCH-3044", "ORCH-3045")
@pytest.mark.parametrize(("declared", "groups"), [(None, [["a"], ["b"]]), (True, [["a", "b"]])])
async def test_a_strict_pool_gives_a_server_that_may_batch_one_text_at_a_time(
    attach: Attach, server: Server, declared: bool | None, groups: list[list[str]]
) -> None:
    adapter = await attach(workload="embedding", batch_invariant=declared)
    data = [{"index": n, "embedding": [0.5]} for n in range(len(groups[0]))]
    server.answers["/v1/embeddings"] = json_answer_bytes({"data": data, "usage": {"prompt_tokens": 1}})
    probed = len(server.calls)
    items = await collect(adapter, "a/1", request(workload="embedding", prompt=None, inputs=["a", "b"]))
    assert items == [Chunk("[0.5]")] * 2 + [Finish("stop", tokens_in=len(groups))]
    assert [body["input"] for _, body in server.calls[probed:]] == groups


@pytest.mark.req("ORCH-3044")
async def test_documents_are_scored_in_their_order(attach: Attach, server: Server) -> None:
    adapter = await attach(workload="rerank", determinism="best_effort")
    documents = ["Paris is the capital.", "I like dogs", "The Seine runs through Paris."]
    items = await collect(adapter, "a/1", request(workload="rerank", prompt="What?", inputs=documents))
    told = msgspec.json.decode(recorded("scores")[2])["data"]
    expected = [Chunk(f'{{"index":{n},"score":{told[n]["score"]}}}') for n in range(3)]
    assert items[:-1] == expected
    assert server.calls[-1] == ("/v1/score", {"model": MODEL, "queries": "What?", "documents": documents})


@pytest.mark.req("ORCH-3025", "ORCH-3044")
@pytest.mark.parametrize(
    "body",
    [
        {"data": [{"index": 1, "score": 0.5}, {"index": 0, "score": 0.5}], "usage": {}},
        {"data": [{"index": 0, "score": 0.5}], "usage": {}},
        {"data": [{"index": 0, "score": "high"}, {"index": 1, "score": 0.5}], "usage": {}},
        {"data": [{"index": 0, "score": None}, {"index": 1, "score": 0.5}], "usage": {}},
        {"results": []},
    ],
)
async def test_an_answer_that_does_not_fit_its_inputs_is_a_reset(
    attach: Attach, server: Server, body: dict[str, Any]
) -> None:
    adapter = await attach(workload="rerank", determinism="best_effort")
    server.answers["/v1/score"] = json_answer_bytes(body)
    with pytest.raises(EngineError) as reset:
        await collect(adapter, "a/1", request(workload="rerank", prompt="What?", inputs=["a", "b"]))
    assert reset.value.info.code == "WORKER_RESET"


@pytest.mark.parametrize(
    ("workload", "asked"),
    [
        ("completion", {"workload": "embedding", "prompt": None, "inputs": ["a"]}),
        ("embedding", {}),
        ("rerank", {"workload": "rerank", "prompt": None, "inputs": ["a"]}),
    ],
)
async def test_a_pool_serves_its_own_workload(attach: Attach, workload: str, asked: dict[str, Any]) -> None:
    adapter = await attach(workload=workload)
    with pytest.raises(EngineError) as refused:
        await collect(adapter, "a/1", request(**asked))
    assert (refused.value.info.code, refused.value.info.retriable) == ("INVALID_PARAMS", False)
