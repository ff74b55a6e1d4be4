"""The adapter against the fake engine: a real process, real sockets, no model."""

import asyncio
import hashlib
import os
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest

from adapters.llamacpp import LlamaCppAdapter
from adapters.testing.fake_model import write_fake_model
from contracts.api import Message, Sampling
from contracts.engine import Chunk, EngineError, EngineSpec, Finish, GenerateRequest

Launch = Callable[..., Awaitable[LlamaCppAdapter]]


def request(prompt: str | None = "one two three", max_tokens: int = 5, **fields: object) -> GenerateRequest:
    return GenerateRequest(task_id="t", max_tokens=max_tokens, seed=7, prompt=prompt, **fields)  # type: ignore[arg-type]


async def collect(adapter: LlamaCppAdapter, key: str, what: GenerateRequest) -> list[Chunk | Finish]:
    return [item async for item in adapter.generate(key, what)]


async def started(adapter: LlamaCppAdapter, key: str) -> asyncio.Task[list[Chunk | Finish]]:
    """An endless attempt that has made its first token."""
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


async def busy(adapter: LlamaCppAdapter) -> int | None:
    return (await adapter.metrics()).requests_processing


@pytest.mark.req("ORCH-3032", "OC-ADAPT-5011")
async def test_properties_are_the_engines_own(launch: Launch, spec: EngineSpec) -> None:
    adapter = await launch()
    properties = await adapter.properties()
    assert properties.engine_version == "llama.cpp fake-llama-server 1"
    content = Path(spec.model_path).read_bytes()
    assert properties.model_digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert (properties.slots, properties.ctx, properties.interruptible_decode) == (2, 256, True)


@pytest.mark.req("ORCH-3009", "ORCH-3022", "ORCH-3045", "ORCH-3086")
async def test_the_prompt_cache_is_claimed_only_where_it_is_exact(launch: Launch) -> None:
    plain = await (await launch()).properties()
    # Two layers of two heads, keys and values of 16 each, 2 bytes a value; each slot has a context of its own.
    assert (plain.keeps_kv, plain.kv_token_bytes, plain.kv_tokens) == (True, 2 * 2 * 32 * 2, 0)
    threads = await (await launch("-t", "2")).properties()
    assert (threads.keeps_kv, threads.kv_token_bytes) == (False, 2 * 2 * 32 * 2)
    # Packed keys take 34 bytes for 32 of them.
    quantized = await (await launch("--cache-type-k=q8_0")).properties()
    assert (quantized.keeps_kv, quantized.kv_token_bytes) == (False, 2 * 34 + 2 * 2 * 16 * 2)


async def test_a_changed_model_file_gets_another_digest(launch: Launch, spec: EngineSpec) -> None:
    adapter = await launch()
    before = (await adapter.properties()).model_digest
    write_fake_model(Path(spec.model_path), "another")
    assert (await adapter.properties()).model_digest != before


@pytest.mark.req("OC-ADAPT-5001", "ORCH-3045")
async def test_the_same_request_gives_the_same_stream(launch: Launch) -> None:
    adapter, other = await launch(), await launch()
    expected = await collect(adapter, "a", request())
    assert len(expected) == 6
    assert expected[-1] == Finish("length", tokens_in=3)
    assert await collect(other, "a", request()) == expected
    assert await collect(adapter, "a", request(prompt="one two four")) != expected


async def test_prompts_of_every_kind_are_counted_as_they_are_run(launch: Launch) -> None:
    adapter = await launch()
    for what in (request(), request(prompt=""), request(prompt=None), request(None, messages=[Message("user", "hi")])):
        items = await collect(adapter, "a", what)
        finish = items[-1]
        assert isinstance(finish, Finish)
        assert finish.tokens_in == await adapter.count_tokens(what) > 0
        assert len(items) == 6


async def test_a_stop_string_ends_the_stream(launch: Launch) -> None:
    adapter = await launch()
    first = (await collect(adapter, "a", request()))[1]
    assert isinstance(first, Chunk)
    items = await collect(adapter, "b", request(sampling=Sampling(stop=[first.text])))
    assert items[-1] == Finish("stop", tokens_in=3, stop_sequence=first.text)


@pytest.mark.req("ORCH-3019")
async def test_more_in_flight_than_slots_is_refused(launch: Launch) -> None:
    adapter = await launch("--fake-token-ms", "20")
    tasks = [await started(adapter, key) for key in ("a", "b")]
    with pytest.raises(EngineError) as raised:
        await collect(adapter, "c", request())
    assert raised.value.info.code == "REPLICA_EXHAUSTED"
    with pytest.raises(EngineError, match="running already"):
        await collect(adapter, "a", request())
    await adapter.cancel("a")
    assert len(await collect(adapter, "c", request())) == 6
    await adapter.cancel("b")
    await asyncio.gather(*tasks)


@pytest.mark.req("ORCH-3017", "ORCH-3026")
@pytest.mark.parametrize("moment", ["opening", "prefill", "decode"])
async def test_cancel_frees_the_slot_in_every_phase(launch: Launch, moment: str) -> None:
    adapter = await launch(*(["--fake-token-ms", "20"] if moment == "decode" else ["--fake-first-token-ms", "60000"]))
    if moment == "decode":
        task = await started(adapter, "a")
    else:
        task = asyncio.create_task(collect(adapter, "a", request()))
        while moment == "prefill" and not await busy(adapter):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
    await adapter.cancel("a")
    assert await busy(adapter) == 0
    items = await asyncio.wait_for(task, 5)
    assert not any(isinstance(item, Finish) for item in items)


@pytest.mark.req("ORCH-3017")
async def test_closing_the_iterator_frees_the_slot(launch: Launch) -> None:
    adapter = await launch("--fake-token-ms", "20")
    stream = cast(AsyncGenerator[object, None], adapter.generate("a", request(max_tokens=200)))
    await anext(stream)
    await stream.aclose()
    await adapter.cancel("a")
    assert await busy(adapter) == 0


@pytest.mark.req("ORCH-3017")
async def test_cancelling_the_consumer_frees_the_slot(launch: Launch) -> None:
    adapter = await launch("--fake-first-token-ms", "60000")
    task = asyncio.create_task(collect(adapter, "a", request()))
    while not await busy(adapter):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await adapter.cancel("a")
    assert await busy(adapter) == 0


async def test_cancelling_what_is_unknown_or_over_is_fine(launch: Launch) -> None:
    adapter = await launch()
    await adapter.cancel("never")
    await collect(adapter, "a", request())
    await adapter.cancel("a")


@pytest.mark.req("ORCH-3025")
async def test_an_engine_killed_mid_stream_is_a_worker_reset(launch: Launch) -> None:
    adapter = await launch("--fake-token-ms", "1", "--fake-die-after", "3")
    stream = adapter.generate("a", request(max_tokens=50))
    items = [await anext(stream) for _ in range(3)]
    with pytest.raises(EngineError) as raised:
        await anext(stream)
    assert (raised.value.info.code, raised.value.info.retriable) == ("WORKER_RESET", True)
    assert all(isinstance(item, Chunk) for item in items)
    assert (await adapter.wait_exit()).status == -signal.SIGKILL
    assert not await adapter.healthy()
    await adapter.launch()
    assert await adapter.healthy()


@pytest.mark.req("ORCH-3014")
async def test_a_prompt_over_the_context_is_invalid(launch: Launch) -> None:
    adapter = await launch()
    with pytest.raises(EngineError) as raised:
        await collect(adapter, "a", request(prompt="word " * 300))
    assert raised.value.info.code == "INVALID_PARAMS"
    assert len(await collect(adapter, "a", request())) == 6


@pytest.mark.parametrize("what", [request(workload="embedding"), request(None, inputs=["x"])])
async def test_other_workloads_are_refused(launch: Launch, what: GenerateRequest) -> None:
    adapter = await launch()
    with pytest.raises(EngineError) as raised:
        await collect(adapter, "a", what)
    assert raised.value.info.code == "INVALID_PARAMS"


@pytest.mark.req("ORCH-3002", "ORCH-3010")
async def test_launch_waits_until_the_model_is_loaded(launch: Launch) -> None:
    adapter = await launch("--fake-load-ms", "400")
    assert len(await collect(adapter, "a", request())) == 6


@pytest.mark.req("OC-ADAPT-5002", "ORCH-3044")
async def test_nobody_else_can_reach_the_engine(launch: Launch) -> None:
    adapter = await launch()
    pid = adapter.pid
    assert pid is not None
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    path = Path(arguments[arguments.index(b"--host") + 1].decode())
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.is_socket()
    key = next(
        entry.partition(b"=")[2]
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if entry.startswith(b"LLAMA_API_KEY=")
    )
    assert len(key) > 30
    assert not any(key in argument for argument in arguments)
    await adapter.close()
    await adapter.close()
    assert not path.parent.exists()


async def test_a_launch_removes_what_a_killed_owner_left(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, starting = tmp_path / "llorch-engine-left", tmp_path / "llorch-engine-starting"
    left.mkdir()
    starting.mkdir()
    (left / "owner.lock").touch()  # and nobody holds the lock
    first = await launch()
    second = await launch()
    assert not left.exists()
    assert starting.exists()
    assert await first.healthy()
    assert await second.healthy()


@pytest.mark.req("ORCH-3001")
async def test_the_engine_shares_the_process_group(launch: Launch) -> None:
    adapter = await launch()
    assert adapter.pid is not None
    assert os.getpgid(adapter.pid) == os.getpgid(0)


PARENT = """
import asyncio, msgspec, sys
from adapters.llamacpp import LlamaCppAdapter
from contracts.engine import EngineSpec
async def main():
    adapter = LlamaCppAdapter(msgspec.json.decode(sys.argv[1], type=EngineSpec))
    await adapter.launch()
    print(adapter.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.req("ORCH-3001", "ORCH-3017")
async def test_the_engine_dies_with_its_parent(spec: EngineSpec, root: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PARENT,
        msgspec.json.encode(spec).decode(),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert parent.stdout is not None
    engine = os.pidfd_open(int(await asyncio.wait_for(parent.stdout.readline(), 30)))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(engine, ended.set)
    try:
        assert not ended.is_set()
        parent.kill()
        await parent.wait()
        await asyncio.wait_for(ended.wait(), 10)
    finally:
        asyncio.get_running_loop().remove_reader(engine)
        os.close(engine)
