"""The adapter on a real tritonserver with the project's toy model: the server is real, the text is made up."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from adapters.triton import TritonAdapter
from adapters.triton.provision import find_engine
from adapters.triton.repository import TOY_REPOSITORY
from contracts.api import Sampling
from contracts.engine import Chunk, EngineError, EngineSpec, Finish, GenerateRequest
from orchestrator.cluster.self_test import self_test

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOTS = 4
TRANSPORTS = ("grpc", "http")


@pytest.fixture(scope="module")
def spec() -> EngineSpec:
    return EngineSpec(
        engine="triton",
        pool_id="real",
        replica_id="real-0",
        model="llorch_text",
        model_path=str(TOY_REPOSITORY),
        ctx=1024,
        slots=SLOTS,
        accelerator="cpu-dev",
        binary=str(find_engine()),
        ready_timeout_ms=60_000,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=TRANSPORTS)
async def engine(spec: EngineSpec, request: pytest.FixtureRequest) -> AsyncIterator[TritonAdapter]:
    adapter = TritonAdapter(replace(spec, args=(f"--llorch-transport={request.param}",)))
    await adapter.launch()
    yield adapter
    await adapter.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other_engine(spec: EngineSpec) -> AsyncIterator[TritonAdapter]:
    """Another process, over gRPC."""
    adapter = TritonAdapter(spec)
    await adapter.launch()
    yield adapter
    await adapter.close()


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(spec: EngineSpec) -> AsyncIterator[TritonAdapter]:
    """One that a test may break."""
    adapter = TritonAdapter(spec)
    await adapter.launch()
    yield adapter
    await adapter.close()


def request(prompt: str, max_tokens: int = 12, seed: int = 42, **fields: object) -> GenerateRequest:
    return GenerateRequest(task_id="t", max_tokens=max_tokens, seed=seed, prompt=prompt, **fields)  # type: ignore[arg-type]


async def collect(adapter: TritonAdapter, key: str, what: GenerateRequest) -> list[Chunk | Finish]:
    return [item async for item in adapter.generate(key, what)]


def text_of(items: list[Chunk | Finish]) -> str:
    return "".join(item.text for item in items if isinstance(item, Chunk))


async def until_processing(adapter: TritonAdapter, count: int) -> None:
    async with asyncio.timeout(20):
        while (await adapter.metrics()).requests_processing != count:
            await asyncio.sleep(0.02)


@pytest.mark.req("ORCH-3032", "ORCH-3057", "OC-ADAPT-5060", "OC-ADAPT-5070")
async def test_a_ready_engine_generates_and_says_what_it_is(engine: TritonAdapter) -> None:
    items = await collect(engine, "a", request("The river"))
    assert isinstance(items[-1], Finish)
    assert items[-1] == Finish("length", tokens_in=2)
    assert sum(item.tokens for item in items if isinstance(item, Chunk)) == 12
    properties = await engine.properties()
    assert properties.engine_version == "triton 2.51.0"
    assert properties.model_digest.startswith("sha256:")
    assert (properties.slots, properties.ctx, properties.exact) == (SLOTS, 4096, True)
    assert await engine.count_tokens(request("The river")) == 2
    assert await engine.healthy()


@pytest.mark.req("ORCH-3045", "OC-CORE-1030")
async def test_the_same_task_gives_the_same_text_alone_in_company_and_elsewhere(
    engine: TritonAdapter, other_engine: TritonAdapter
) -> None:
    task = request("Once upon a time", max_tokens=60)
    alone = await collect(engine, "alone", task)
    assert len(alone) > 20
    noise = [request(f"noise {n}", max_tokens=20 + 9 * n, seed=n) for n in range(SLOTS - 1)]
    company = await asyncio.gather(
        *(
            collect(adapter, f"{adapter is other_engine}{n}", what)
            for adapter in (engine, other_engine)
            for n, what in enumerate([*noise, task])
        )
    )
    assert company[SLOTS - 1] == company[-1] == alone
    assert text_of(await collect(engine, "other", request("Once upon a time", 60, seed=43))) != text_of(alone)


@pytest.mark.req("OC-ADAPT-5010")
async def test_characters_come_whole_and_the_sampler_listens(engine: TritonAdapter) -> None:
    whole = text_of(await collect(engine, "whole", request("日本", 80)))
    assert any(len(character.encode()) == 4 for character in whole)
    greedy = [
        text_of(await collect(engine, f"g{seed}", request("x", 12, seed, sampling=Sampling(temperature=0))))
        for seed in (1, 2)
    ]
    assert greedy[0] == greedy[1]


@pytest.mark.req("ORCH-3058")
async def test_a_stop_string_ends_the_text_and_is_told(engine: TritonAdapter) -> None:
    task = request("stop", 200)
    whole = text_of(await collect(engine, "whole", task))
    stop = whole[20:24]
    items = await collect(engine, "cut", replace(task, sampling=Sampling(stop=[stop])))
    assert text_of(items) == whole[: whole.index(stop)]
    assert isinstance(items[-1], Finish)
    assert (items[-1].finish_reason, items[-1].stop_sequence) == ("stop", stop)
    assert (await engine.metrics()).requests_processing == 0


@pytest.mark.req("ORCH-3025")
@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        (request("[[fail]]"), "INTERNAL", False),
        (request("[[fail:3]]"), "INTERNAL", True),
        (request("[[nothing]]"), "WORKER_RESET", False),
        (request("x", max_tokens=5000), "INVALID_PARAMS", False),
        (request("x", sampling=Sampling(min_p=0.5)), "INVALID_PARAMS", False),
        (request(""), "INVALID_PARAMS", False),
        (request("x", workload="rerank"), "INVALID_PARAMS", False),
    ],
    ids=["first", "later", "nothing", "too-long", "no-such-input", "empty", "workload"],
)
async def test_errors_are_typed_and_leave_nothing_behind(
    engine: TritonAdapter, what: GenerateRequest, code: str, text: bool
) -> None:
    items: list[Chunk | Finish] = []

    async def run() -> None:
        async for item in engine.generate("e", what):
            items.append(item)  # noqa: PERF401  (what came before the error counts)

    with pytest.raises(EngineError) as caught:
        await run()
    assert caught.value.info.code == code
    assert bool(items) == text
    assert await collect(engine, "after", request("x", 2))


async def test_empty_texts_and_huge_ones_pass(engine: TritonAdapter) -> None:
    blank = await collect(engine, "blank", request("[[blank:3]] x", 6))
    assert [item.text for item in blank if isinstance(item, Chunk)][:3] == ["", "", ""]
    huge = await collect(engine, "huge", request("[[huge:400000]] x", 2))
    assert len(text_of(huge)) >= 400_000


@pytest.mark.req("ORCH-3017", "ORCH-3026")
@pytest.mark.parametrize("prompt", ["[[pace:20]] decoding", "[[stall:2]] stalled"])
async def test_a_cancel_amid_a_text_frees_the_engine_and_no_text_follows(engine: TritonAdapter, prompt: str) -> None:
    items: list[Chunk | Finish] = []
    began = asyncio.Event()

    async def run() -> None:
        async for item in engine.generate("c", request(prompt, 2000)):
            items.append(item)
            began.set()

    task = asyncio.create_task(run())
    await asyncio.wait_for(began.wait(), 20)
    assert (await engine.metrics()).requests_processing == 1
    await engine.cancel("c")
    assert (await engine.metrics()).requests_processing == 0
    seen = len(items)
    await asyncio.wait_for(task, 5)
    assert (len(items), any(isinstance(item, Finish) for item in items)) == (seen, False)


@pytest.mark.req("ORCH-3017", "ORCH-3026")
async def test_a_cancel_before_the_first_response_frees_the_engine(other_engine: TritonAdapter) -> None:
    """Over gRPC: over HTTP the server learns of a closed connection when it writes, which it does not here."""
    task = asyncio.create_task(collect(other_engine, "p", request("[[stall]] prefill")))
    await until_processing(other_engine, 1)
    await other_engine.cancel("p")
    assert await asyncio.wait_for(task, 5) == []
    assert (await other_engine.metrics()).requests_processing == 0
    await other_engine.cancel("unknown")


@pytest.mark.req("ORCH-3017")
async def test_a_model_that_does_not_notice_a_cancel_keeps_its_slot_taken(fresh: TritonAdapter) -> None:
    task = asyncio.create_task(collect(fresh, "d", request("[[deaf]] [[pace:50]] x", 4000)))
    await until_processing(fresh, 1)
    with pytest.raises(EngineError, match="still holds"):
        await fresh.cancel("d")
    await asyncio.wait_for(task, 5)


@pytest.mark.req("ORCH-3019")
async def test_no_more_is_in_flight_than_the_engine_has_slots(engine: TritonAdapter) -> None:
    tasks = [asyncio.create_task(collect(engine, f"s{n}", request("[[pace:20]] x", 500))) for n in range(SLOTS)]
    await until_processing(engine, SLOTS)
    with pytest.raises(EngineError) as caught:
        await collect(engine, "one too many", request("x"))
    assert caught.value.info.code == "REPLICA_EXHAUSTED"
    for n in range(SLOTS):
        await engine.cancel(f"s{n}")
    await asyncio.gather(*tasks)


@pytest.mark.req("ORCH-3025", "ORCH-3001")
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_crash_of_the_model_process_breaks_all_streams_and_the_engine_comes_back(
    spec: EngineSpec, transport: str
) -> None:
    adapter = TritonAdapter(replace(spec, args=(f"--llorch-transport={transport}",)))
    await adapter.launch()
    try:
        bystander = asyncio.create_task(collect(adapter, "b", request("[[pace:20]] x", 2000)))
        await until_processing(adapter, 1)
        for stream in (collect(adapter, "c", request("[[crash:2]]")), bystander):
            with pytest.raises(EngineError) as caught:
                await asyncio.wait_for(stream, 20)
            assert caught.value.info.code == "WORKER_RESET"
        assert not await adapter.healthy()
        ended = await asyncio.wait_for(adapter.wait_exit(), 20)
        assert ended.status != 0
        await adapter.close()
        await adapter.launch()
        assert await collect(adapter, "again", request("x", 2))
    finally:
        await adapter.close()


@pytest.mark.req("ORCH-3001")
async def test_a_killed_server_leaves_no_model_process_and_no_memory(spec: EngineSpec) -> None:
    adapter = TritonAdapter(spec)
    await adapter.launch()
    assert adapter.pid is not None
    tree = descendants(adapter.pid)
    assert len(tree) == 3, "the server and a process for each of its two models"
    os.kill(tree[0], signal.SIGKILL)
    await asyncio.wait_for(adapter.wait_exit(), 20)
    assert not [pid for pid in tree if Path(f"/proc/{pid}/exe").exists()]
    await adapter.close()
    assert adapter.pid is None


def descendants(root: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{root}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


@pytest.mark.req("ORCH-3057")
async def test_the_model_can_be_unloaded_and_loaded_again(other_engine: TritonAdapter) -> None:
    before = await collect(other_engine, "before", request("x"))
    await other_engine.unload()
    assert not await other_engine.healthy()
    with pytest.raises(EngineError) as caught:
        await collect(other_engine, "without", request("x"))
    assert (caught.value.info.code, caught.value.info.retriable) == ("POOL_UNREADY", True)
    await other_engine.load()
    assert await other_engine.healthy()
    assert await collect(other_engine, "after", request("x")) == before


async def test_embeddings_come_as_the_server_wrote_them(spec: EngineSpec) -> None:
    embedding = replace(spec, model="llorch_embed", workload="embedding")
    adapter = TritonAdapter(embedding)
    await adapter.launch()
    try:
        inputs = ["The river", "日本", "The river"]
        task = GenerateRequest(task_id="t", max_tokens=1, seed=1, workload="embedding", inputs=inputs)
        *chunks, finish = await collect(adapter, "e", task)
        assert len(chunks) == 3
        assert chunks[0] == chunks[2] != chunks[1]
        assert isinstance(finish, Finish)
        assert finish.tokens_in == await adapter.count_tokens(task)
        assert (await adapter.properties()).slots == SLOTS
        assert (await adapter.metrics()).requests_processing == 0
        await self_test(adapter, embedding)
    finally:
        await adapter.close()


@pytest.mark.req("ORCH-3003")
@pytest.mark.parametrize("model", ["nobody", "broken"])
async def test_a_model_that_cannot_be_loaded_is_told(spec: EngineSpec, tmp_path: Path, model: str) -> None:
    folder = tmp_path / "broken" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text("raise ImportError('no such thing')\n")
    (folder.parent / "config.pbtxt").write_text('name: "broken"\nbackend: "python"\n')
    adapter = TritonAdapter(replace(spec, model=model, model_path=str(tmp_path)))
    with pytest.raises(EngineError) as caught:
        await adapter.launch()
    assert (caught.value.info.code, caught.value.kind) == ("POOL_UNREADY", "model")
    await adapter.close()


@pytest.mark.req("OC-ADAPT-5002")
async def test_the_server_listens_on_private_sockets_only(other_engine: TritonAdapter) -> None:
    assert other_engine.pid is not None
    inodes = set()
    for pid in descendants(other_engine.pid):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if os.path.exists(link) and os.readlink(link).startswith("socket:"):
                inodes.add(os.readlink(link)[8:-1])
    listening = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{other_engine.pid}/net/{name}").read_text().splitlines()[1:]
    ]
    assert not [fields for fields in listening if fields[3] == "0A" and fields[9] in inodes]
