"""The mock adapter: what it does when told nothing, and each fault."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.mock import HOST_OOM, VRAM_OOM, MockAdapter, MockFaults
from contracts.api import Sampling
from contracts.engine import Chunk, EngineError, EngineSpec, Finish, GenerateRequest

Launch = Callable[..., Awaitable[MockAdapter]]

SPEC = EngineSpec(
    engine="mock", pool_id="p", replica_id="p-0", model="m", model_path="", ctx=256, slots=2, accelerator="cpu-dev"
)


def request(prompt: str = "one two three", max_tokens: int = 20, **fields: object) -> GenerateRequest:
    return GenerateRequest(**{"task_id": "t", "max_tokens": max_tokens, "seed": 7, "prompt": prompt, **fields})  # type: ignore[arg-type]


@pytest.fixture
async def launch() -> AsyncIterator[Launch]:
    adapters = []

    async def start(faults: MockFaults | None = None, **changes: object) -> MockAdapter:
        adapter = MockAdapter(replace(SPEC, **changes), faults)
        adapters.append(adapter)
        await adapter.launch()
        return adapter

    yield start
    for adapter in adapters:
        await adapter.close()


async def collect(adapter: MockAdapter, what: GenerateRequest, key: str = "a") -> list[Chunk | Finish]:
    return [item async for item in adapter.generate(key, what)]


async def failure(adapter: MockAdapter, what: GenerateRequest) -> EngineError:
    with pytest.raises(EngineError) as raised:
        async with asyncio.timeout(10):
            await collect(adapter, what)
    assert raised.value.info.engine == "mock"
    return raised.value


@pytest.mark.req("ORCH-3045", "OC-ADAPT-5010")
async def test_text_follows_from_model_prompt_and_seed(launch: Launch) -> None:
    adapter, twin, other_model = await launch(), await launch(), await launch(model="other")
    expected = await collect(adapter, request())
    assert await collect(twin, request()) == expected
    for what in (request("another"), request(seed=8), request(sampling=Sampling(temperature=0.5))):
        assert await collect(adapter, what) != expected
    assert await collect(other_model, request()) != expected
    greedy = Sampling(temperature=0)
    assert await collect(adapter, request(sampling=greedy)) == await collect(adapter, request(seed=8, sampling=greedy))


@pytest.mark.req("OC-ADAPT-5010")
async def test_characters_of_several_tokens_arrive_whole(launch: Launch) -> None:
    adapter = await launch()
    items = await collect(adapter, request(max_tokens=200))
    chunks = [item for item in items if isinstance(item, Chunk)]
    text = "".join(chunk.text for chunk in chunks)
    assert "🙂" in text
    assert "\ufffd" not in text
    assert sum(chunk.tokens for chunk in chunks) == 200
    assert items[-1] == Finish("length", tokens_in=3)


@pytest.mark.req("ORCH-3039")
@pytest.mark.parametrize(("words", "kind"), [(VRAM_OOM, "vram_oom"), (HOST_OOM, "host_oom"), ("no idea", "exit")])
async def test_memory_runs_out_at_launch_and_later(launch: Launch, words: str, kind: str) -> None:
    with pytest.raises(EngineError) as raised:
        await launch(MockFaults(fail_at_launch=True, last_words=words))
    assert (raised.value.info.code, raised.value.kind, raised.value.stderr_tail) == ("POOL_UNREADY", kind, (words,))
    adapter = await launch(MockFaults(die_after=3, last_words=words))
    assert (await failure(adapter, request())).info.code == "WORKER_RESET"
    end = await asyncio.wait_for(adapter.wait_exit(), 5)
    # What ends with a signal and without words that tell why, somebody killed.
    assert (end.status, end.kind, end.stderr_tail) == (-9, "killed" if kind == "exit" else kind, (words,))
    assert not await adapter.healthy()


@pytest.mark.req("ORCH-3025")
@pytest.mark.parametrize("fault", ["truncate_after", "garbage_after", "miscount_after", "die_after"])
async def test_a_stream_that_goes_wrong_is_a_worker_reset(launch: Launch, fault: str) -> None:
    adapter = await launch(MockFaults(**{fault: 4}))
    error = await failure(adapter, request())
    assert (error.info.code, error.info.retriable) == ("WORKER_RESET", True)


@pytest.mark.req("ORCH-3017")
async def test_a_stalled_generation_can_be_canceled(launch: Launch) -> None:
    adapter = await launch(MockFaults(stall_after=8))
    stream = adapter.generate("a", request())
    made = 0
    while made < 6:
        item = await anext(stream)
        assert isinstance(item, Chunk)
        made += item.tokens
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await asyncio.wait_for(adapter.cancel("a"), 5)
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert (await adapter.metrics()).requests_processing == 0


@pytest.mark.req("ORCH-3017")
async def test_a_slot_that_is_kept_is_told_of(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.attempts.CANCEL_WAIT_MS", 300)
    adapter = await launch(MockFaults(keep_slots=True, token_ms=5), slots=1)
    stream = adapter.generate("a", request())
    await anext(stream)
    with pytest.raises(EngineError) as raised:
        await adapter.cancel("a")
    assert raised.value.info.code == "WORKER_RESET"
    with pytest.raises(EngineError) as refused:
        await collect(adapter, request(), "b")
    assert refused.value.info.code == "REPLICA_EXHAUSTED"


@pytest.mark.req("ORCH-3010")
async def test_health_can_lie(launch: Launch) -> None:
    adapter = await launch(MockFaults(die_after=1, lie_in_health=True))
    assert (await failure(adapter, request())).info.code == "WORKER_RESET"
    assert await adapter.healthy()
    await adapter.cancel("a")
    assert (await failure(adapter, request())).info.code == "WORKER_RESET"


async def test_a_slow_launch_takes_its_time_and_a_dead_engine_can_be_launched_again(launch: Launch) -> None:
    adapter = await launch(MockFaults(launch_ms=20, first_token_ms=1, token_ms=0.1))
    adapter.kill()
    assert not await adapter.healthy()
    await adapter.launch()
    assert (await collect(adapter, request()))[-1] == Finish("length", tokens_in=3)


@pytest.mark.req("ORCH-3003")
async def test_a_model_file_that_is_missing_is_told_of(tmp_path: Path) -> None:
    adapter = MockAdapter(replace(SPEC, model_path=str(tmp_path / "absent")))
    for step in (adapter.memory_need, adapter.launch):
        with pytest.raises(EngineError) as raised:
            await step()
        assert (raised.value.info.code, raised.value.kind) == ("POOL_UNREADY", "model")
