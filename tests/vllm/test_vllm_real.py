"""The adapter on a real vLLM for the CPU with the bundled model: what only the real thing can prove.

Its server takes a minute or two to come up, so the tests share as few as they can.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio
from msgspec.structs import replace

from adapters.vllm import VllmAdapter
from adapters.vllm.provision import find_engine, find_model
from contracts.api import Message, Sampling
from contracts.engine import Chunk, EngineError, EngineSpec, Finish, GenerateRequest

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

MODEL = "smollm2-135m-instruct"
CTX = 1024
#: About 400 tokens, some seconds of prefill.
LONG = "The river runs to the sea and the sea keeps every secret of the river. " * 25


@pytest.fixture(scope="module")
def spec() -> EngineSpec:
    python = find_engine()
    return EngineSpec(
        engine="vllm",
        pool_id="real",
        replica_id="real-0",
        model=MODEL,
        model_path=str(find_model(python, MODEL)),
        ctx=CTX,
        slots=4,
        accelerator="cpu-dev",
        binary=str(python),
        ready_timeout_ms=600_000,
    )


async def running(spec: EngineSpec) -> AsyncIterator[VllmAdapter]:
    adapter = VllmAdapter(spec)
    await adapter.launch()
    yield adapter
    await adapter.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(spec: EngineSpec) -> AsyncIterator[VllmAdapter]:
    async for adapter in running(spec):
        yield adapter


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def batching(spec: EngineSpec) -> AsyncIterator[VllmAdapter]:
    async for adapter in running(replace(spec, determinism="best_effort")):
        yield adapter


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pooling(spec: EngineSpec) -> AsyncIterator[VllmAdapter]:
    async for adapter in running(replace(spec, workload="embedding")):
        yield adapter


def request(prompt: str | None = "The capital of France is", max_tokens: int = 12, **fields: object) -> GenerateRequest:
    return GenerateRequest(task_id="t", max_tokens=max_tokens, seed=7, prompt=prompt, **fields)  # type: ignore[arg-type]


async def collect(adapter: VllmAdapter, key: str, what: GenerateRequest) -> list[Chunk | Finish]:
    return [item async for item in adapter.generate(key, what)]


def text_of(items: list[Chunk | Finish]) -> str:
    return "".join(item.text for item in items if isinstance(item, Chunk))


@pytest.mark.req("ORCH-3032", "OC-ADAPT-5001", "OC-ADAPT-5011")
async def test_it_says_what_it_is(engine: VllmAdapter) -> None:
    properties = await engine.properties()
    assert properties.engine_version == "vllm 0.32.0"
    assert (properties.slots, properties.ctx, properties.exact, properties.keeps_kv) == (1, CTX, True, False)
    # 30 layers of 3 KV heads, keys and values of 64 each, in 32 bits.
    assert properties.kv_token_bytes == 2 * 30 * 3 * 64 * 4


@pytest.mark.req("OC-ADAPT-5001", "OC-ADAPT-5010")
async def test_tokens_and_text_add_up(engine: VllmAdapter) -> None:
    before = await engine.metrics()
    items = await collect(engine, "a/1", request())
    after = await engine.metrics()
    end = items[-1]
    assert isinstance(end, Finish)
    assert (end.finish_reason, end.tokens_in) == ("length", await engine.count_tokens(request()))
    assert sum(item.tokens for item in items if isinstance(item, Chunk)) == 12
    assert (after.tokens_out_total or 0) - (before.tokens_out_total or 0) == 12
    assert (after.requests_processing, after.requests_waiting) == (0, 0)


async def test_a_conversation_and_nothing_at_all(engine: VllmAdapter) -> None:
    conversation = request(None, messages=[Message("user", "Say hello.")])
    items = await collect(engine, "a/1", conversation)
    end = items[-1]
    assert isinstance(end, Finish)
    assert end.tokens_in == await engine.count_tokens(conversation) > 10
    assert len(await collect(engine, "a/2", request("", 3))) == 4


async def test_a_stop_string_and_the_contexts_end(engine: VllmAdapter) -> None:
    items = await collect(engine, "a/1", request(max_tokens=60, sampling=Sampling(temperature=0, stop=["Paris"])))
    assert items[-1] == Finish("stop", tokens_in=5, stop_sequence="Paris")
    assert "Paris" not in text_of(items)
    full = request("word " * (CTX - 20), 100, sampling=Sampling(logit_bias={"2": -100.0}))
    items = await collect(engine, "a/2", full)
    end = items[-1]
    assert isinstance(end, Finish)
    assert end.finish_reason == "length"
    assert end.tokens_in + sum(item.tokens for item in items if isinstance(item, Chunk)) == CTX


@pytest.mark.req("ORCH-2006", "ORCH-3025")
async def test_refusals_leave_the_engine_as_it_was(engine: VllmAdapter) -> None:
    for refused in (request("word " * 2 * CTX), request(sampling=Sampling(logit_bias={"99999999": 1.0}))):
        with pytest.raises(EngineError) as error:
            await collect(engine, "a/1", refused)
        assert error.value.info.code == "INVALID_PARAMS"
    assert len(await collect(engine, "a/2", request(max_tokens=2))) == 3


@pytest.mark.req("ORCH-3017", "ORCH-3086")
async def test_a_cancel_amid_decoding(engine: VllmAdapter) -> None:
    items = engine.generate("a/1", request(max_tokens=900, sampling=Sampling(logit_bias={"2": -100.0})))
    await anext(items)
    await engine.cancel("a/1")
    assert [item async for item in items] == []
    made = (await engine.metrics()).tokens_out_total
    await asyncio.sleep(1)
    assert (await engine.metrics()).tokens_out_total == made


@pytest.mark.req("ORCH-3017")
@pytest.mark.parametrize("wait_s", [0.0, 0.3])
async def test_a_cancel_before_the_first_token(engine: VllmAdapter, wait_s: float) -> None:
    task = asyncio.create_task(collect(engine, "a/1", request(LONG)))
    await asyncio.sleep(wait_s)
    await engine.cancel("a/1")
    assert await task == []
    assert len(await collect(engine, "a/2", request(max_tokens=2))) == 3


@pytest.mark.req("ORCH-3045", "ORCH-3050")
async def test_alone_it_is_exact_whatever_came_before(engine: VllmAdapter) -> None:
    tasks = [request(), request(LONG), request(LONG[:900])]
    first = [await collect(engine, f"a/{n}", task) for n, task in enumerate(tasks)]
    again = [await collect(engine, f"b/{n}", task) for n, task in reversed(list(enumerate(tasks)))]
    assert again[::-1] == first


@pytest.mark.req("ORCH-3045")
async def test_another_process_says_the_same(engine: VllmAdapter, batching: VllmAdapter) -> None:
    task = request(LONG, 24)
    assert await collect(batching, "a/1", task) == await collect(engine, "a/1", task)


@pytest.mark.req("OC-ADAPT-5001")
async def test_tasks_share_the_engine_where_the_pool_promises_nothing(batching: VllmAdapter) -> None:
    prompts = [f"Number {n} is" for n in range(4)]
    results = await asyncio.gather(*(collect(batching, f"a/{n}", request(p, 8)) for n, p in enumerate(prompts)))
    assert all(isinstance(items[-1], Finish) for items in results)
    assert not (await batching.properties()).exact


@pytest.mark.req("ORCH-3017")
async def test_a_cancel_leaves_the_others_alone(batching: VllmAdapter) -> None:
    endless = Sampling(logit_bias={"2": -100.0})
    other = asyncio.create_task(collect(batching, "a/1", request(max_tokens=40, sampling=endless)))
    items = batching.generate("a/2", request(max_tokens=900, sampling=endless))
    await anext(items)
    await batching.cancel("a/2")
    assert [item async for item in items] == []
    assert sum(item.tokens for item in await other if isinstance(item, Chunk)) == 40


@pytest.mark.req("ORCH-3044")
async def test_embeddings(pooling: VllmAdapter) -> None:
    task = request(None, workload="embedding", inputs=["Paris is the capital.", "I like dogs", "Paris is the capital."])
    items = await collect(pooling, "a/1", task)
    vectors = [msgspec.json.decode(item.text, type=list[float]) for item in items if isinstance(item, Chunk)]
    assert [len(vector) for vector in vectors] == [576] * 3
    assert vectors[0] == vectors[2] != vectors[1]
    assert items[-1] == Finish("stop", tokens_in=await pooling.count_tokens(task))
    assert await collect(pooling, "a/2", task) == items
    with pytest.raises(EngineError) as refused:
        await collect(pooling, "a/3", request(None, workload="embedding", inputs=["a", ""]))
    assert refused.value.info.code == "INVALID_PARAMS"


@pytest.mark.req("ORCH-3044")
async def test_rerank(spec: EngineSpec) -> None:
    async for adapter in running(replace(spec, workload="rerank")):
        documents = ["Paris is the capital.", "I like dogs"]
        task = request("What is the capital of France?", workload="rerank", inputs=documents)
        items = await collect(adapter, "a/1", task)
        scores = [msgspec.json.decode(item.text) for item in items if isinstance(item, Chunk)]
        assert [score["index"] for score in scores] == [0, 1]
        assert scores[0]["score"] > scores[1]["score"]
        assert items[-1] == Finish("stop", tokens_in=await adapter.count_tokens(task))


@pytest.mark.req("ORCH-3001", "ORCH-3026", "ORCH-3053")
async def test_its_end_is_told_and_another_comes_up(spec: EngineSpec) -> None:
    adapter = VllmAdapter(spec)
    await adapter.launch()
    try:
        items = adapter.generate("a/1", request(max_tokens=900))
        await anext(items)
        assert adapter.pid is not None
        os.kill(adapter.pid, signal.SIGKILL)
        with pytest.raises(EngineError) as reset:
            async for _ in items:
                pass
        assert reset.value.info.code == "WORKER_RESET"
        assert (await asyncio.wait_for(adapter.wait_exit(), 30)).status != 0
        assert not await adapter.healthy()
        await adapter.launch()
        assert len(await collect(adapter, "a/2", request(max_tokens=2))) == 3
    finally:
        await adapter.close()


async def test_what_it_cannot_do_is_refused_before_it_starts(spec: EngineSpec) -> None:
    for changes in ({"env": (("VLLM_BATCH_INVARIANT", "1"),)}, {"accelerator": "gpu"}):
        adapter = VllmAdapter(replace(spec, **changes))
        with pytest.raises(EngineError) as refused:
            await adapter.launch()
        assert refused.value.info.code in ("INVALID_PARAMS", "POOL_UNAVAILABLE")
        assert adapter.pid is None


@pytest.mark.req("ORCH-3053")
async def test_why_it_did_not_start_is_told(spec: EngineSpec) -> None:
    adapter = VllmAdapter(replace(spec, args=("--kv-cache-memory-bytes", "1000000")))
    with pytest.raises(EngineError, match="ended while starting") as failed:
        await adapter.launch()
    assert failed.value.info.code == "POOL_UNREADY"
    assert any("Engine core initialization failed" in line for line in failed.value.stderr_tail)
