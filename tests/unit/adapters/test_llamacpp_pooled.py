"""Embeddings and ranks of the llama.cpp adapter, on the fake engine: a real process, no model."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.llamacpp import LlamaCppAdapter
from adapters.llamacpp.command import server_arguments
from adapters.llamacpp.memory import memory_need
from adapters.llamacpp.pooled import _result
from adapters.llamacpp.pooling import default_pooling
from adapters.llamacpp.protocol import error_of_response
from adapters.testing.fake_model import write_fake_model
from adapters.testing.fake_pooled import DIMENSIONS, PAIR_EXTRA_TOKENS
from contracts.engine import Chunk, EngineError, EngineSpec, Finish, GenerateRequest

Launch = Callable[..., Awaitable[LlamaCppAdapter]]
TEXTS = ["one two three", "four", "five six"]
TOKENS = 6


def embedding(texts: list[str] = TEXTS) -> GenerateRequest:
    return GenerateRequest(task_id="t", max_tokens=1, seed=1, workload="embedding", inputs=texts)


def rerank(texts: list[str] = TEXTS, query: str = "which one") -> GenerateRequest:
    return GenerateRequest(task_id="t", max_tokens=1, seed=1, workload="rerank", prompt=query, inputs=texts)


async def collect(adapter: LlamaCppAdapter, key: str, what: GenerateRequest) -> list[Chunk | Finish]:
    return [item async for item in adapter.generate(key, what)]


@pytest.mark.req("OC-ADAPT-5001", "ORCH-3045")
async def test_an_embedding_is_one_chunk_of_numbers_for_each_input(launch: Launch) -> None:
    adapter, other = await launch(workload="embedding"), await launch(workload="embedding")
    items = await collect(adapter, "a", embedding())
    assert items[-1] == Finish("stop", tokens_in=TOKENS)
    assert [type(item) for item in items[:-1]] == [Chunk] * 3
    for item in items[:-1]:
        assert isinstance(item, Chunk)
        assert item.tokens == 1
        assert re.fullmatch(r"\[(-?\d[\d.e-]*,?)+\]", item.text)
        assert len(json.loads(item.text)) == DIMENSIONS
    assert await collect(other, "b", embedding()) == items
    # Alone or beside others, in whatever order: an input has its own numbers.
    assert (await collect(adapter, "c", embedding(TEXTS[::-1])))[:-1] == items[-2::-1]


@pytest.mark.req("OC-ADAPT-5001")
async def test_ranks_come_in_the_order_of_the_documents(launch: Launch) -> None:
    adapter = await launch(workload="rerank")
    items = await collect(adapter, "a", rerank())
    assert items[-1] == Finish("stop", tokens_in=TOKENS + 3 * (2 + PAIR_EXTRA_TOKENS))
    ranks = [json.loads(item.text) for item in items if isinstance(item, Chunk)]
    assert [rank["index"] for rank in ranks] == [0, 1, 2]
    assert len({rank["score"] for rank in ranks}) == 3
    again = await collect(adapter, "b", rerank(TEXTS[1:2]))
    assert isinstance(again[0], Chunk)
    assert json.loads(again[0].text)["score"] == ranks[1]["score"]


@pytest.mark.req("ORCH-3015")
async def test_inputs_are_counted_as_they_are_run(launch: Launch) -> None:
    for workload, what in (("embedding", embedding()), ("rerank", rerank())):
        adapter = await launch(workload=workload)
        finish = (await collect(adapter, "a", what))[-1]
        assert isinstance(finish, Finish)
        assert await adapter.count_tokens(what) == finish.tokens_in > 0


@pytest.mark.parametrize(
    ("served", "asked"),
    [
        ("completion", embedding()),
        ("embedding", rerank()),
        ("rerank", embedding()),
        ("embedding", replace(embedding(), inputs=None)),
    ],
)
async def test_a_pool_serves_what_it_was_started_for(launch: Launch, served: str, asked: GenerateRequest) -> None:
    adapter = await launch(workload=served)
    for work in (adapter.count_tokens(asked), collect(adapter, "a", asked)):
        with pytest.raises(EngineError) as refused:
            await work
        assert refused.value.info.code == "INVALID_PARAMS"
        assert refused.value.info.message == f"this pool serves {served}, not {asked.workload}"
    assert (await adapter.metrics()).requests_processing == 0


@pytest.mark.req("ORCH-3015")
async def test_an_input_over_the_context_is_the_requests_fault(launch: Launch) -> None:
    adapter = await launch(workload="embedding", ctx=32)
    with pytest.raises(EngineError) as refused:
        await collect(adapter, "a", embedding(["short", "word " * 33]))
    assert (refused.value.info.code, refused.value.info.retriable) == ("INVALID_PARAMS", False)
    assert len(await collect(adapter, "b", embedding())) == 4
    empty = error_of_response(400, b'{"error":{"code":400,"message":"Input content cannot be empty"}}')
    assert empty.info.code == "INVALID_PARAMS"


@pytest.mark.req("ORCH-3017", "ORCH-3026", "ORCH-3054")
async def test_a_cancel_lets_the_input_under_way_end_and_starts_no_other(launch: Launch) -> None:
    adapter = await launch("--fake-first-token-ms", "100", workload="embedding", determinism="best_effort")
    first = asyncio.Event()

    async def run() -> list[Chunk | Finish]:
        items = []
        async for item in adapter.generate("a", embedding(["word"] * 1000)):
            items.append(item)
            first.set()
        return items

    task = asyncio.create_task(run())
    await first.wait()
    await adapter.cancel("a")
    assert (await adapter.metrics()).requests_processing == 0
    items = await task
    assert 1 <= len(items) < 20
    assert all(isinstance(item, Chunk) for item in items)
    await asyncio.sleep(0.15)
    assert (await adapter.metrics()).requests_processing == 0


@pytest.mark.req("ORCH-3019", "ORCH-3045", "ORCH-3050")
async def test_tasks_run_one_at_a_time_where_batches_would_change_numbers(launch: Launch, spec: EngineSpec) -> None:
    properties = []
    for workload, determinism, shown in (
        ("embedding", "strict", None),
        ("embedding", "best_effort", None),
        ("embedding", "strict", True),
        ("rerank", "best_effort", None),
    ):
        adapter = await launch(workload=workload, determinism=determinism, batch_invariant=shown)
        properties.append(await adapter.properties())
    assert [each.slots for each in properties] == [1, 2, 2, 1]
    assert [each.exact for each in properties] == [True, False, True, True]
    assert not any(each.keeps_kv or each.interruptible_decode for each in properties)
    assert spec.slots == 2


@pytest.mark.req("OC-ADAPT-5001", "ORCH-3045")
def test_the_server_is_started_for_the_workload(spec: EngineSpec) -> None:
    socket = Path("/run/engine.sock")
    words = {
        workload: server_arguments(replace(spec, workload=workload), socket)
        for workload in ("completion", "embedding", "rerank")
    }
    assert not {"--embeddings", "--reranking", "--pooling"} & set(words["completion"])
    assert words["completion"][words["completion"].index("-ub") + 1] == "32"
    for workload, flag in (("embedding", "--embeddings"), ("rerank", "--reranking")):
        assert flag in words[workload]
        assert "--pooling" not in words[workload]
        for name in ("-b", "-ub"):
            assert words[workload][words[workload].index(name) + 1] == str(spec.ctx)
    pooled = server_arguments(replace(spec, workload="embedding", args=("--pooling", "last")), socket, "mean")
    assert [pooled[n + 1] for n, word in enumerate(pooled) if word == "--pooling"] == ["mean", "last"]


@pytest.mark.req("ORCH-3003", "OC-POOL-3002")
def test_the_larger_batch_is_part_of_what_an_engine_takes(spec: EngineSpec) -> None:
    plain = memory_need(spec)
    embeds = memory_need(replace(spec, workload="embedding"))
    # 256 rows instead of 32, by a vocabulary of 4096, a width of 64 and 128, and a context of 256.
    row_bytes = (4096 + 3 * 64 + 2 * 128) * 4 + 256 * 6
    assert embeds.scratch_bytes - plain.scratch_bytes == (256 - 32) * row_bytes
    assert embeds.host_bytes > plain.host_bytes


def test_the_models_own_pooling_is_kept(tmp_path: Path) -> None:
    plain = write_fake_model(tmp_path / "plain.gguf")
    told = write_fake_model(tmp_path / "told.gguf", facts={"llama.pooling_type": 3})
    assert (default_pooling(plain), default_pooling(told), default_pooling(tmp_path / "none")) == ("mean", "", "")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"data":[],"usage":{"prompt_tokens":1}}',
        b'{"data":[{"embedding":[1]},{"embedding":[2]}],"usage":{"prompt_tokens":1}}',
        b'{"data":[{"embedding":[1}],"usage":{"prompt_tokens":1}}',
        b'{"data":[{"embedding":[1,null]}],"usage":{"prompt_tokens":1}}',
        b'{"data":[{"embedding":[1]}]}',
    ],
)
def test_an_answer_that_is_no_embedding_is_an_error(answer: bytes) -> None:
    with pytest.raises(EngineError) as failed:
        _result(embedding(), 0, answer)
    assert failed.value.info.code in ("WORKER_RESET", "INTERNAL")


def test_numbers_are_passed_on_as_the_engine_wrote_them() -> None:
    digits = "[-0.02043287828564644,1e-05,1.0,0.10000000149011612]"
    answer = f'{{"data":[{{"index":0,"embedding":{digits}}}],"usage":{{"prompt_tokens":2}},"more":1}}'
    assert _result(embedding(), 0, answer.encode()) == (digits, 2)
    answer = '{"results":[{"index":0,"relevance_score":-1.4316926002502441}],"usage":{"prompt_tokens":7}}'
    assert _result(rerank(), 4, answer.encode()) == ('{"index":4,"score":-1.4316926002502441}', 7)
