"""The adapter on a real llama-server with the bundled model: what only the real thing can prove."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from adapters import create_adapter
from adapters.llamacpp import LlamaCppAdapter
from adapters.llamacpp.models import bundled_model_path
from adapters.llamacpp.provision import find_engine
from contracts.api import Message, Sampling
from contracts.engine import Chunk, EngineError, EngineSpec, Finish, GenerateRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "smollm2-135m-instruct"
SLOTS = 8
CTX = 1024
LONG = "The river runs to the sea and the sea keeps every secret of the river. " * 55


@pytest.fixture(scope="module")
def spec() -> EngineSpec:
    return EngineSpec(
        engine="llamacpp",
        pool_id="real",
        replica_id="real-0",
        model=MODEL,
        model_path=str(bundled_model_path(MODEL)),
        ctx=CTX,
        slots=SLOTS,
        accelerator="cpu-dev",
        binary=str(find_engine()),
    )


async def running(spec: EngineSpec) -> AsyncIterator[LlamaCppAdapter]:
    adapter = create_adapter(spec)
    assert isinstance(adapter, LlamaCppAdapter)
    await adapter.launch()
    yield adapter
    await adapter.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(spec: EngineSpec) -> AsyncIterator[LlamaCppAdapter]:
    async for adapter in running(spec):
        yield adapter


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other_engine(spec: EngineSpec) -> AsyncIterator[LlamaCppAdapter]:
    async for adapter in running(spec):
        yield adapter


def request(prompt: str | None = None, max_tokens: int = 16, seed: int = 42, **fields: object) -> GenerateRequest:
    return GenerateRequest(task_id="t", max_tokens=max_tokens, seed=seed, prompt=prompt, **fields)  # type: ignore[arg-type]


async def collect(adapter: LlamaCppAdapter, key: str, what: GenerateRequest) -> list[Chunk | Finish]:
    return [item async for item in adapter.generate(key, what)]


async def started(adapter: LlamaCppAdapter, key: str, what: GenerateRequest) -> asyncio.Task[list[Chunk | Finish]]:
    """An attempt that has made its first token."""
    first = asyncio.Event()

    async def run() -> list[Chunk | Finish]:
        items = []
        async for item in adapter.generate(key, what):
            items.append(item)
            first.set()
        return items

    task = asyncio.create_task(run())
    await asyncio.wait_for(first.wait(), 30)
    return task


async def until_processing(adapter: LlamaCppAdapter, count: int) -> None:
    async with asyncio.timeout(30):
        while (await adapter.metrics()).requests_processing != count:
            await asyncio.sleep(0.05)


@pytest.mark.req("ORCH-3032", "ORCH-3054", "OC-ADAPT-5011", "ORCH-3002")
async def test_a_ready_engine_generates_and_says_what_it_is(engine: LlamaCppAdapter) -> None:
    items = await collect(engine, "a", request("The capital of France is", max_tokens=1))
    assert items == [Chunk(" Paris"), Finish("length", tokens_in=5)]
    properties = await engine.properties()
    assert properties.engine_version.startswith("llama.cpp b")
    assert (properties.slots, properties.ctx) == (SLOTS, CTX)
    assert properties.model_digest == "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.mark.req("ORCH-3045", "OC-CORE-1030")
async def test_the_same_task_gives_the_same_tokens_alone_and_in_company(
    engine: LlamaCppAdapter, other_engine: LlamaCppAdapter
) -> None:
    task = request("Once upon a time", max_tokens=40)
    alone = [item for item in await collect(engine, "alone", task) if isinstance(item, Chunk)]
    assert len(alone) > 20
    noise = [
        request(f"{LONG[: 60 * n]} Question {n}: what is {n} times {n}?", max_tokens=8 + 4 * n, seed=n)
        for n in range(1, SLOTS)
    ]
    both = await asyncio.gather(
        *(
            collect(adapter, f"{n}", what)
            for adapter in (engine, other_engine)
            for n, what in enumerate([*noise[:4], task, *noise[4:]])
        )
    )
    texts = [[item for item in items if isinstance(item, Chunk)] for items in both]
    assert texts[4] == texts[4 + SLOTS] == alone
    assert texts[:SLOTS] == texts[SLOTS:]


@pytest.mark.req("ORCH-3014", "ORCH-3015")
@pytest.mark.parametrize(
    "what",
    [
        request("The capital of France is"),
        request("Emoji 🙂🏴‍☠️ and ünïcödé\n\n\ttabs"),
        request(""),
        request(None, messages=[Message("system", "Be brief."), Message("user", "Say hi 🙂")]),
        request("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
async def test_the_counted_prompt_is_the_evaluated_one(engine: LlamaCppAdapter, what: GenerateRequest) -> None:
    items = await collect(engine, "a", what)
    finish = items[-1]
    assert isinstance(finish, Finish)
    assert finish.tokens_in == await engine.count_tokens(what) > 0
    tokens = sum(item.tokens for item in items if isinstance(item, Chunk))
    assert tokens == 16 if finish.finish_reason == "length" else 0 < tokens <= 16


@pytest.mark.req("OC-ADAPT-5010")
async def test_a_stop_string_ends_the_text_before_it(engine: LlamaCppAdapter) -> None:
    what = request("The capital of France is", max_tokens=40, sampling=Sampling(stop=["The"]))
    items = await collect(engine, "a", what)
    assert "".join(item.text for item in items if isinstance(item, Chunk)) == " Paris. "
    finish = items[-1]
    assert isinstance(finish, Finish)
    assert (finish.finish_reason, finish.stop_sequence) == ("stop", "The")


@pytest.mark.req("OC-ADAPT-5010")
async def test_characters_of_several_tokens_arrive_whole_and_fully_counted(engine: LlamaCppAdapter) -> None:
    what = request("Write emoji: 🙂🙂🙂🙂🙂", max_tokens=8, sampling=Sampling(temperature=0.0))
    chunks = [item for item in await collect(engine, "a", what) if isinstance(item, Chunk)]
    assert "".join(chunk.text for chunk in chunks) == "🙂🙂🙂🙂"
    assert sum(chunk.tokens for chunk in chunks) == 8


@pytest.mark.req("ORCH-3045")
async def test_a_cold_prompt_gives_the_same_tokens_as_a_cached_one(engine: LlamaCppAdapter) -> None:
    results = [
        await collect(engine, "a", request(LONG[:600], kv_hint=hint)) for hint in ("cold", "reuse", "reuse", "cold")
    ]
    cached = [item.tokens_cached for items in results for item in items if isinstance(item, Finish)]
    assert cached[0] == cached[3] == 0
    assert cached[1] > 0
    assert len({tuple(item for item in items if isinstance(item, Chunk)) for items in results}) == 1


@pytest.mark.req("ORCH-3017", "ORCH-3026", "ORCH-3054")
async def test_cancel_mid_stream_frees_the_slot(engine: LlamaCppAdapter) -> None:
    task = await started(engine, "a", request("Once upon a time", max_tokens=900))
    async with asyncio.timeout(2):
        await engine.cancel("a")
    await until_processing(engine, 0)
    assert not any(isinstance(item, Finish) for item in await asyncio.wait_for(task, 1))


@pytest.mark.req("ORCH-3017", "ORCH-3026", "ORCH-3054")
async def test_cancel_during_prefill_frees_the_slot_while_others_stream(engine: LlamaCppAdapter) -> None:
    background = await started(engine, "background", request("Once upon a time", max_tokens=900))
    prefill = asyncio.create_task(collect(engine, "prefill", request(LONG, kv_hint="cold")))
    await until_processing(engine, 2)
    async with asyncio.timeout(2):
        await engine.cancel("prefill")
    assert await asyncio.wait_for(prefill, 1) == []
    await until_processing(engine, 1)
    await engine.cancel("background")
    await background


@pytest.mark.req("ORCH-3014")
async def test_a_prompt_over_the_context_is_refused(engine: LlamaCppAdapter) -> None:
    with pytest.raises(EngineError) as raised:
        await collect(engine, "a", request("word " * (CTX + 10)))
    assert (raised.value.info.code, raised.value.info.retriable) == ("INVALID_PARAMS", False)


@pytest.mark.req("ORCH-3054")
async def test_metrics_count_what_was_done(engine: LlamaCppAdapter) -> None:
    before = await engine.metrics()
    await collect(engine, "a", request("One more", max_tokens=7))
    after = await engine.metrics()
    assert before.tokens_out_total is not None
    assert after.tokens_out_total == before.tokens_out_total + 7
    assert after.kv_cache_usage_ratio is not None
    assert 0 < after.kv_cache_usage_ratio <= 1


@pytest.mark.req("OC-ADAPT-5002", "ORCH-3044")
async def test_the_engine_listens_on_no_port(engine: LlamaCppAdapter) -> None:
    assert engine.pid is not None
    sockets = {os.readlink(link) for link in Path(f"/proc/{engine.pid}/fd").iterdir() if link.is_symlink()}
    inodes = {name[8:-1] for name in sockets if name.startswith("socket:")}
    assert inodes
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/{engine.pid}/net/{table}").read_text().splitlines()[1:]
        assert not inodes & {line.split()[9] for line in lines}


@pytest.mark.req("ORCH-3025")
async def test_killing_the_engine_mid_stream_is_a_worker_reset(other_engine: LlamaCppAdapter) -> None:
    task = await started(other_engine, "a", request("Once upon a time", max_tokens=900))
    assert other_engine.pid is not None
    os.kill(other_engine.pid, signal.SIGKILL)
    with pytest.raises(EngineError) as raised:
        await asyncio.wait_for(task, 10)
    assert (raised.value.info.code, raised.value.info.retriable) == ("WORKER_RESET", True)
    ended = await other_engine.wait_exit()
    assert ended.status == -signal.SIGKILL
    assert ended.stderr_tail
    await other_engine.launch()
    assert len(await collect(other_engine, "a", request("Again", max_tokens=1))) == 2


@pytest.mark.req("ORCH-3003", "OC-POOL-3002")
async def test_the_memory_reckoned_covers_what_is_taken(engine: LlamaCppAdapter) -> None:
    need = await engine.memory_need()
    # 30 layers of 3 heads, keys and values of 64, two bytes each; the file but for its header.
    assert need.kv_slot_bytes == CTX * 30 * 3 * 128 * 2
    assert 92 * 2**20 < need.weights_bytes < 93 * 2**20
    # The engine has its whole cache from the start, so that short prompts show all that it takes.
    await asyncio.gather(*(collect(engine, f"{n}", request(f"{n}", max_tokens=4)) for n in range(SLOTS)))
    status = Path(f"/proc/{engine.pid}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    assert int(peak[1]) * 1024 < need.host_bytes < 2 * int(peak[1]) * 1024


@pytest.mark.req("ORCH-3003", "ORCH-3037", "OC-POOL-3002")
async def test_a_model_that_was_not_copied_in_full_is_found_out_before_and_at_launch(
    spec: EngineSpec, tmp_path: Path
) -> None:
    part = tmp_path / "part.gguf"
    with Path(spec.model_path).open("rb") as whole:
        part.write_bytes(whole.read(8_000_000))
    adapter = LlamaCppAdapter(replace(spec, model_path=str(part)))
    with pytest.raises(EngineError, match="not copied in full") as reckoned:
        await adapter.memory_need()
    with pytest.raises(EngineError, match="ended while starting") as launched:
        await adapter.launch()
    assert reckoned.value.kind == launched.value.kind == "model"
    assert any("corrupted or incomplete" in line for line in launched.value.stderr_tail)


@pytest.mark.req("ORCH-3020")
async def test_packed_caches_and_a_draft_model_are_taken(spec: EngineSpec) -> None:
    args = ("-ctk", "q8_0", "-ctv", "q8_0", "-md", spec.model_path)
    adapter = LlamaCppAdapter(replace(spec, slots=2, ctx=256, args=args))
    need = await adapter.memory_need()
    assert need.kv_slot_bytes == 256 * 30 * 192 * 2 * (34 + 2 * 32) // 32
    await adapter.launch()
    assert (await adapter.properties()).kv_token_bytes == 30 * 192 * 2 * 34 // 32
    assert isinstance((await collect(adapter, "a", request("Once", max_tokens=4)))[-1], Finish)
    await adapter.close()
