"""The TGI adapter, attached to the peer that stands in for TGI (which it is not)."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
from msgspec.structs import replace

from adapters.testing.tgi_peer.options import PeerOptions
from adapters.testing.tgi_peer.server import running
from adapters.tgi import TgiAdapter
from contracts.api import Message, Sampling
from contracts.engine import Chunk, EngineError, EngineSpec, Finish, GenerateRequest

Attach = Callable[..., Awaitable[TgiAdapter]]

KEY_VARIABLE = "TGI_TEST_KEY"
SPEC = EngineSpec(
    engine="tgi",
    pool_id="p",
    replica_id="p-0",
    model="m",
    model_path="",
    ctx=256,
    slots=2,
    accelerator="cpu-dev",
    ready_timeout_ms=20_000,
    determinism="best_effort",
)


def request(prompt: str | None = "one two three", max_tokens: int = 5, **fields: Any) -> GenerateRequest:
    fields = {"seed": 7} | fields
    return GenerateRequest(task_id="t", max_tokens=max_tokens, prompt=prompt, **fields)


async def collect(adapter: TgiAdapter, what: GenerateRequest, key: str = "a") -> list[Chunk | Finish]:
    return [item async for item in adapter.generate(key, what)]


def text_of(items: list[Chunk | Finish]) -> str:
    return "".join(item.text for item in items if isinstance(item, Chunk))


async def started(adapter: TgiAdapter, key: str) -> asyncio.Task[list[Chunk | Finish]]:
    """A long attempt that has made its first token."""
    first = asyncio.Event()

    async def run() -> list[Chunk | Finish]:
        items = []
        async for item in adapter.generate(key, request(max_tokens=200)):
            items.append(item)
            first.set()
        return items

    task = asyncio.create_task(run())
    await asyncio.wait_for(first.wait(), 10)
    return task


@pytest.fixture
async def attach(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Attach]:
    """Attach adapters to peers of their own, with these options; `spec` changes the spec."""
    monkeypatch.setenv(KEY_VARIABLE, "key")
    async with AsyncExitStack() as stack:

        async def start(spec: dict[str, Any] | None = None, **options: Any) -> TgiAdapter:
            told: dict[str, Any] = {"max_total_tokens": 256, "api_key": "key"} | options
            port = await stack.enter_async_context(running(PeerOptions(**told)))
            where = {"endpoint": f"http://127.0.0.1:{port}", "api_key_env": KEY_VARIABLE}
            adapter = TgiAdapter(replace(SPEC, **(where | (spec or {}))))
            stack.push_async_callback(adapter.close)
            await adapter.launch()
            return adapter

        yield start


@pytest.mark.req("ORCH-3032", "OC-ADAPT-5050")
async def test_properties_are_what_the_server_tells(attach: Attach) -> None:
    adapter = await attach(model_id="a/b", revision="r1")
    properties = await adapter.properties()
    assert properties.engine_version == "tgi 3.3.6-peer"
    assert properties.model_digest == f"sha256:{hashlib.sha256(b'a/b@r1').hexdigest()}"
    assert (properties.slots, properties.ctx, properties.interruptible_decode) == (2, 256, True)
    assert not properties.exact
    assert (await (await attach(max_concurrent_requests=1)).properties()).slots == 1


@pytest.mark.req("ORCH-3045")
async def test_a_strict_pool_runs_one_task_at_a_time(attach: Attach) -> None:
    adapter = await attach({"determinism": "strict"}, token_ms=20)
    properties = await adapter.properties()
    assert (properties.slots, properties.exact, (await adapter.memory_need()).slots_max) == (1, False, 1)
    task = await started(adapter, "a")
    with pytest.raises(EngineError) as raised:
        await collect(adapter, request(), "b")
    assert raised.value.info.code == "REPLICA_EXHAUSTED"
    await adapter.cancel("a")
    await task
    shown = await attach({"determinism": "strict", "batch_invariant": True})
    assert ((await shown.properties()).slots, (await shown.properties()).exact) == (2, True)


@pytest.mark.req("OC-ADAPT-5001", "ORCH-3045", "ORCH-3058")
async def test_the_same_request_gives_the_same_stream(attach: Attach) -> None:
    adapter, other = await attach(), await attach()
    expected = await collect(adapter, request(max_tokens=60))
    assert len(expected) == 61
    assert expected[-1] == Finish("length", tokens_in=4)
    assert await collect(other, request(max_tokens=60)) == expected
    for change in (request("one two four", 60), request(max_tokens=60, seed=8)):
        assert text_of(await collect(adapter, change)) != text_of(expected)
    assert text_of(await collect(adapter, request(max_tokens=60, sampling=Sampling(top_k=5)))) != text_of(expected)


@pytest.mark.req("OC-ADAPT-5010")
async def test_temperature_zero_is_greedy_whatever_the_seed(attach: Attach) -> None:
    adapter = await attach()
    for sampling in (Sampling(temperature=0), Sampling(temperature=0, top_k=5, top_p=0.5)):
        one, other = [await collect(adapter, request(seed=seed, sampling=sampling)) for seed in (1, 2)]
        assert one == other


@pytest.mark.req("OC-ADAPT-5010")
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(min_p=0.1),
        Sampling(presence_penalty=0.5),
        Sampling(logit_bias={"5": 1.0}),
        Sampling(stop=list("abcde")),
        Sampling(frequency_penalty=2.0, repeat_penalty=1.1, top_p=1.0, top_k=0, min_p=0.0),
    ],
)
async def test_what_the_engine_cannot_do_is_refused_and_nothing_else(attach: Attach, sampling: Sampling) -> None:
    adapter = await attach()
    if sampling.frequency_penalty is not None:
        assert isinstance((await collect(adapter, request(sampling=sampling)))[-1], Finish)
        return
    with pytest.raises(EngineError) as raised:
        await collect(adapter, request(sampling=sampling))
    assert (raised.value.info.code, raised.value.info.retriable) == ("INVALID_PARAMS", False)
    assert len(await collect(adapter, request())) == 6


async def test_text_is_whole_characters_without_special_tokens(attach: Attach) -> None:
    items = await collect(await attach(), request(max_tokens=240))
    chunks = [item for item in items if isinstance(item, Chunk)]
    assert sum(chunk.tokens for chunk in chunks) == 240
    text = text_of(items)
    assert any(character in text for character in "é€語🙂")
    assert "\ufffd" not in text
    assert "<" not in text


@pytest.mark.req("OC-ADAPT-5010")
async def test_stop_strings_end_the_text_as_with_other_engines(attach: Attach) -> None:
    adapter = await attach()
    text = text_of(await collect(adapter, request(max_tokens=60)))
    for at, length in ((10, 3), (21, 5), (30, 1)):
        stop = text[at : at + length]
        items = await collect(adapter, request(max_tokens=60, sampling=Sampling(stop=["never", stop])))
        assert text_of(items) == text[: text.index(stop)]
        assert items[-1] == Finish("stop", tokens_in=4, stop_sequence=stop)


@pytest.mark.req("ORCH-3019")
async def test_after_an_end_of_our_own_the_slot_is_free_at_once(attach: Attach) -> None:
    """TGI would go on: past a stop string within a token, and to the end of its round of 1024 tokens."""
    adapter = await attach({"determinism": "strict"}, max_total_tokens=4096, token_ms=1)
    text = text_of(await collect(adapter, request(max_tokens=10)))
    within = text.replace(" ", "")[1:3]
    for _ in range(3):
        items = await collect(adapter, request(max_tokens=900, sampling=Sampling(stop=[within])))
        assert items[-1] == Finish("stop", tokens_in=4, stop_sequence=within)
    fast = await attach({"determinism": "strict"}, max_total_tokens=4096)
    for _ in range(2):
        long = await collect(fast, request(max_tokens=1100))
        assert long[-1] == Finish("length", tokens_in=4)
        assert sum(item.tokens for item in long if isinstance(item, Chunk)) == 1100
    assert (await fast.metrics()).requests_processing == 0


async def test_the_end_of_the_text_is_a_stop(attach: Attach) -> None:
    items = await collect(await attach(), request("say fake-length=4", 20))
    assert items[-1] == Finish("stop", tokens_in=3)
    assert len(items) == 5


async def test_prompts_of_every_kind_are_counted_as_they_are_run(attach: Attach) -> None:
    adapter = await attach()
    chat = request(None, messages=[Message("system", "be brief"), Message("user", "hé")])
    for what, count in ((request(), 4), (request("<s>x"), 3), (chat, 7), (chat, 7)):
        finish = (await collect(adapter, what))[-1]
        assert isinstance(finish, Finish)
        # The template's start token is not doubled by the tokenizer's.
        assert finish.tokens_in == await adapter.count_tokens(what) == count


@pytest.mark.parametrize("what", [request(""), request(None), request("x", workload="embedding", inputs=["x"])])
async def test_no_prompt_and_other_workloads_are_refused(attach: Attach, what: GenerateRequest) -> None:
    adapter = await attach()
    for refused in (adapter.count_tokens(what), collect(adapter, what)):
        with pytest.raises(EngineError) as raised:
            await refused
        assert (raised.value.info.code, raised.value.info.retriable) == ("INVALID_PARAMS", False)


@pytest.mark.req("ORCH-3025")
async def test_what_the_engine_refuses_is_invalid(attach: Attach) -> None:
    adapter = await attach()
    with pytest.raises(EngineError, match="must be <= 256") as raised:
        await collect(adapter, request(max_tokens=255))
    assert (raised.value.info.code, raised.value.info.retriable) == ("INVALID_PARAMS", False)
    assert len(await collect(adapter, request())) == 6


@pytest.mark.req("ORCH-3017", "ORCH-3026")
@pytest.mark.parametrize("moment", ["opening", "headers", "prefill", "decode"])
async def test_cancel_frees_the_slot_in_every_phase(attach: Attach, moment: str) -> None:
    pace = {"decode": {"token_ms": 20}, "headers": {"headers_ms": 300}}.get(moment, {"first_token_ms": 300})
    adapter = await attach({"determinism": "strict"}, **cast(Any, pace))
    if moment == "decode":
        task = await started(adapter, "a")
    else:
        task = asyncio.create_task(collect(adapter, request()))
        if moment == "prefill":
            # The batch's size does not tell it yet.
            while (await adapter.metrics()).tokens_in_total == 0:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05 if moment == "headers" else 0)
    await adapter.cancel("a")
    items = await asyncio.wait_for(task, 5)
    assert not any(isinstance(item, Finish) for item in items)
    metrics = await adapter.metrics()
    assert (metrics.requests_processing, metrics.requests_waiting) == (0, 0)
    assert len(await collect(adapter, request())) == 6


@pytest.mark.req("ORCH-3017")
async def test_cancel_leaves_the_others_alone(attach: Attach) -> None:
    adapter = await attach(token_ms=5)
    kept, canceled = await started(adapter, "a"), await started(adapter, "b")
    await adapter.cancel("b")
    await canceled
    assert (await adapter.metrics()).requests_processing == 1
    assert isinstance((await kept)[-1], Finish)


@pytest.mark.req("ORCH-3017")
async def test_an_engine_that_does_not_let_go_is_told(attach: Attach) -> None:
    adapter = await attach({"determinism": "strict"}, token_ms=50, deaf=True)
    task = await started(adapter, "a")
    with pytest.raises(EngineError, match="still holds") as raised:
        await adapter.cancel("a")
    assert raised.value.info.code == "WORKER_RESET"
    await task
    with pytest.raises(EngineError) as taken:
        await collect(adapter, request(), "b")
    assert taken.value.info.code == "REPLICA_EXHAUSTED"


@pytest.mark.req("ORCH-3017")
async def test_closing_the_iterator_stops_the_engine(attach: Attach) -> None:
    adapter = await attach(token_ms=5)
    stream = cast(AsyncGenerator[Chunk | Finish], adapter.generate("a", request(max_tokens=200)))
    await anext(stream)
    await stream.aclose()
    await adapter.cancel("a")
    assert (await adapter.metrics()).requests_processing == 0


@pytest.mark.req("ORCH-3025", "ORCH-2006")
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"eof_after": 3}, "WORKER_RESET"),
        ({"end_after": 3}, "WORKER_RESET"),
        ({"garbage_after": 3}, "WORKER_RESET"),
        ({"fail_after": 3}, "INTERNAL"),
        ({"fail_after": 0}, "INTERNAL"),
    ],
)
async def test_faults_are_errors_that_can_be_tried_again(attach: Attach, fault: dict[str, int], code: str) -> None:
    adapter = await attach({"determinism": "strict"}, **fault)
    items: list[Chunk | Finish] = []

    async def run() -> None:
        async for item in adapter.generate("a", request(max_tokens=20)):
            items.append(item)  # noqa: PERF401  (what came before the error is looked at)

    with pytest.raises(EngineError) as raised:
        await run()
    assert (raised.value.info.code, raised.value.info.retriable) == (code, True)
    # Frames that came in one piece with the fault may be lost to it.
    assert all(isinstance(item, Chunk) for item in items)
    assert len(items) <= min(fault.values())


async def test_a_stalled_stream_can_be_canceled(attach: Attach) -> None:
    adapter = await attach({"determinism": "strict"}, stall_after=2)
    task = asyncio.create_task(collect(adapter, request()))
    while (await adapter.metrics()).requests_processing == 0:
        await asyncio.sleep(0.01)
    await adapter.cancel("a")
    assert len([item for item in await task if isinstance(item, Finish)]) == 0
    assert (await adapter.metrics()).requests_processing == 0


@pytest.mark.req("ORCH-3019")
async def test_overload_is_told_as_such(attach: Attach) -> None:
    adapter = await attach(max_concurrent_requests=1, token_ms=20)
    task = await started(adapter, "a")
    with pytest.raises(EngineError) as raised:
        await collect(adapter, request(), "b")
    assert (raised.value.info.code, raised.value.info.retriable) == ("REPLICA_EXHAUSTED", True)
    await adapter.cancel("a")
    await task


async def test_attaching_needs_the_right_key_and_model(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = f"sha256:{hashlib.sha256(b'a/b@r1').hexdigest()}"
    await attach({"model_digest": digest}, model_id="a/b", revision="r1")
    with pytest.raises(EngineError, match="must serve") as wrong:
        await attach({"model_digest": digest}, model_id="a/b", revision="r2")
    assert (wrong.value.info.code, wrong.value.kind) == ("POOL_UNREADY", "model")
    monkeypatch.setenv(KEY_VARIABLE, "another")
    with pytest.raises(EngineError, match="api_key_env") as refused:
        await attach()
    assert refused.value.info.code == "POOL_UNREADY"


@pytest.mark.req("OC-ADAPT-5001")
@pytest.mark.parametrize("workload", ["embedding", "rerank"])
async def test_pools_for_other_workloads_are_refused(workload: str) -> None:
    adapter = TgiAdapter(replace(SPEC, endpoint="http://127.0.0.1:9", workload=cast(Any, workload)))
    for refused in (adapter.launch(), adapter.memory_need()):
        with pytest.raises(EngineError, match="completions only") as raised:
            await refused
        assert (raised.value.info.code, raised.value.info.retriable) == ("INVALID_PARAMS", False)
