"""Embeddings and ranks on a real llama-server with the bundled model: what only the real thing can prove."""

import asyncio
import json
import math
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from msgspec.structs import replace

from adapters import create_adapter
from adapters.llamacpp import LlamaCppAdapter
from adapters.llamacpp.models import bundled_model_path
from adapters.llamacpp.provision import find_engine
from contracts.engine import Chunk, EngineError, EngineSpec, Finish, GenerateRequest
from orchestrator.cluster.self_test import self_test

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "smollm2-135m-instruct"
DIMENSIONS = 576
CTX = 256
TEXTS = [
    "A queue is fair when nobody starves.",
    "First come, first served is a fair queue discipline.",
    "The recipe needs two eggs and a cup of flour.",
    "a",
    "The river runs to the sea. " * 20,
]
SPEC = EngineSpec(
    engine="llamacpp",
    pool_id="real",
    replica_id="real-0",
    model=MODEL,
    model_path="",
    ctx=CTX,
    slots=4,
    accelerator="cpu-dev",
    workload="embedding",
)


async def running(**changes: object) -> AsyncIterator[LlamaCppAdapter]:
    spec = replace(SPEC, model_path=str(bundled_model_path(MODEL)), binary=str(find_engine()), **changes)
    adapter = create_adapter(spec)
    assert isinstance(adapter, LlamaCppAdapter)
    await adapter.launch()
    yield adapter
    await adapter.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[LlamaCppAdapter]:
    async for adapter in running():
        yield adapter


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other_engine() -> AsyncIterator[LlamaCppAdapter]:
    async for adapter in running(determinism="best_effort"):
        yield adapter


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ranker() -> AsyncIterator[LlamaCppAdapter]:
    async for adapter in running(workload="rerank", determinism="best_effort"):
        yield adapter


def embedding(texts: list[str] = TEXTS) -> GenerateRequest:
    return GenerateRequest(task_id="t", max_tokens=1, seed=1, workload="embedding", inputs=texts)


async def results(adapter: LlamaCppAdapter, key: str, what: GenerateRequest) -> tuple[list[str], Finish]:
    *chunks, finish = [item async for item in adapter.generate(key, what)]
    assert isinstance(finish, Finish)
    return [item.text for item in chunks if isinstance(item, Chunk)], finish


def similarity(one: str, other: str) -> float:
    return (
        math.sumprod(json.loads(one), json.loads(other))
        if hasattr(math, "sumprod")
        else sum(a * b for a, b in zip(json.loads(one), json.loads(other), strict=True))
    )


@pytest.mark.req("OC-ADAPT-5001", "ORCH-3045", "ORCH-3054")
async def test_the_same_input_has_the_same_bytes_in_every_process_and_company(
    engine: LlamaCppAdapter, other_engine: LlamaCppAdapter
) -> None:
    texts, finish = await results(engine, "a", embedding())
    assert [len(json.loads(text)) for text in texts] == [DIMENSIONS] * len(TEXTS)
    assert finish == Finish("stop", tokens_in=await engine.count_tokens(embedding()))
    # Alone, in another order, and in another process: byte for byte.
    for key, text in enumerate(TEXTS):
        assert (await results(engine, f"alone-{key}", embedding([text])))[0] == [texts[key]]
    assert (await results(other_engine, "b", embedding(TEXTS[::-1])))[0] == texts[::-1]
    # Unit length, and what is alike in meaning is alike in numbers.
    assert all(abs(similarity(text, text) - 1) < 1e-4 for text in texts)
    assert similarity(texts[0], texts[1]) > similarity(texts[0], texts[2])


@pytest.mark.req("ORCH-3045", "ORCH-3050")
async def test_a_strict_pool_runs_one_task_at_a_time_and_says_so(
    engine: LlamaCppAdapter, other_engine: LlamaCppAdapter, ranker: LlamaCppAdapter
) -> None:
    strict, loose, ranks = [await each.properties() for each in (engine, other_engine, ranker)]
    assert (strict.slots, strict.exact, strict.ctx) == (1, True, CTX)
    assert (loose.slots, loose.exact) == (4, False)
    assert (ranks.slots, ranks.exact) == (1, True)
    both = await asyncio.gather(
        results(other_engine, "one", embedding(TEXTS[:3])), results(other_engine, "two", embedding(TEXTS[:3]))
    )
    for texts, _ in both:
        assert similarity(texts[0], both[0][0][0]) > 0.99  # rounded otherwise perhaps, never another meaning


@pytest.mark.req("ORCH-3015")
async def test_an_input_that_fills_the_context_is_taken_and_a_longer_one_refused(engine: LlamaCppAdapter) -> None:
    full = embedding(["word" + " word" * (CTX - 1)])
    assert await engine.count_tokens(full) == CTX
    texts, finish = await results(engine, "full", full)
    assert (len(texts), finish.tokens_in) == (1, CTX)
    for bad in (["word" + " word" * CTX], [""]):
        with pytest.raises(EngineError) as refused:
            await results(engine, "long", embedding(bad))
        assert (refused.value.info.code, refused.value.info.retriable) == ("INVALID_PARAMS", False)


@pytest.mark.req("ORCH-3017", "ORCH-3026", "ORCH-3054")
async def test_a_cancel_ends_with_the_input_under_way(engine: LlamaCppAdapter) -> None:
    first = asyncio.Event()

    async def run() -> int:
        count = 0
        async for item in engine.generate("endless", embedding([TEXTS[4]] * 500)):
            assert isinstance(item, Chunk)
            count += 1
            first.set()
        return count

    task = asyncio.create_task(run())
    await first.wait()
    await engine.cancel("endless")
    assert 1 <= await task < 100
    assert (await engine.metrics()).requests_processing == 0
    assert len((await results(engine, "next", embedding(["a"])))[0]) == 1


@pytest.mark.req("OC-ADAPT-5001", "ORCH-3045")
async def test_ranks_are_the_same_alone_and_beside_others(ranker: LlamaCppAdapter) -> None:
    """The bundled model is no ranker, so its scores mean nothing; that they are repeatable does."""
    what = GenerateRequest(
        task_id="t", max_tokens=1, seed=1, workload="rerank", prompt="what is a fair queue", inputs=TEXTS[:3]
    )
    texts, finish = await results(ranker, "a", what)
    assert [json.loads(text)["index"] for text in texts] == [0, 1, 2]
    assert finish.tokens_in == await ranker.count_tokens(what)
    for index in range(3):
        alone, _ = await results(ranker, f"alone-{index}", replace(what, inputs=[TEXTS[index]]))
        assert json.loads(alone[0])["score"] == json.loads(texts[index])["score"]


@pytest.mark.req("ORCH-3049", "OC-POOL-3001")
async def test_the_self_test_computes_instead_of_decoding(engine: LlamaCppAdapter, ranker: LlamaCppAdapter) -> None:
    shown = await self_test(engine, SPEC)
    assert shown.token_ns > 0
    assert 5 * DIMENSIONS < shown.result_bytes < 30 * DIMENSIONS
    shown = await self_test(ranker, replace(SPEC, workload="rerank"))
    assert (shown.token_ns > 0, shown.result_bytes) == (True, 0)
