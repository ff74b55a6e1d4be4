"""An engine that runs already is attached to: reached where it is, never started and never ended."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters import engine_server
from adapters.llamacpp import LlamaCppAdapter
from contracts.engine import Chunk, EngineError, EngineSpec, Finish, GenerateRequest

KEY = "an-engine-key"
REQUEST = GenerateRequest(task_id="t", max_tokens=5, seed=1, prompt="one two")


@pytest.fixture
def running(spec: EngineSpec, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """An engine that somebody else started, on a Unix socket."""
    path = tmp_path / "other.sock"
    argv = [spec.binary, "-m", spec.model_path, "--host", str(path), "-np", "2", "-c", "512"]
    process = subprocess.Popen(argv, env={**os.environ, "LLAMA_API_KEY": KEY}, stderr=subprocess.DEVNULL)
    yield process, path
    process.kill()
    process.wait()


def attached(spec: EngineSpec, path: Path, **changes: object) -> EngineSpec:
    return replace(spec, **({"endpoint": f"unix:{path}", "api_key_env": "ENGINE_KEY"} | changes))


@pytest.mark.req("OC-ADAPT-5001")
async def test_it_is_used_and_left_running(
    spec: EngineSpec, running: tuple[subprocess.Popen[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, path = running
    monkeypatch.setenv("ENGINE_KEY", KEY)
    adapter = LlamaCppAdapter(attached(spec, path))
    need = await adapter.memory_need()
    await adapter.launch()
    items = [item async for item in adapter.generate("a/1", REQUEST)]
    assert sum(item.tokens for item in items if isinstance(item, Chunk)) == 5
    assert isinstance(items[-1], Finish)
    assert adapter.pid is None
    assert need.weights_bytes == need.host_bytes == 0
    await adapter.close()
    assert process.poll() is None


async def test_its_end_is_noticed(
    spec: EngineSpec,
    running: tuple[subprocess.Popen[bytes], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, path = running
    monkeypatch.setenv("ENGINE_KEY", KEY)
    monkeypatch.setattr(engine_server, "_ATTACHED_LOOK_S", 0.05)
    adapter = LlamaCppAdapter(attached(spec, path))
    await adapter.launch()
    gone = asyncio.create_task(adapter.wait_exit())
    await asyncio.sleep(0.3)
    assert not gone.done()
    process.send_signal(signal.SIGKILL)
    ended = await asyncio.wait_for(gone, 20)
    assert (ended.status, ended.kind) == (engine_server.ATTACHED_GONE, "exit")
    assert not await adapter.healthy()
    await adapter.close()


@pytest.mark.parametrize("endpoint", ["nowhere", "http://host", "ftp://host:1", "unix:", "http://host:x", "http://:80"])
async def test_what_is_no_endpoint_is_refused(spec: EngineSpec, endpoint: str) -> None:
    adapter = LlamaCppAdapter(replace(spec, endpoint=endpoint))
    with pytest.raises(EngineError, match="give `http://host:port`") as raised:
        await adapter.launch()
    assert (raised.value.info.code, raised.value.info.retriable) == ("INVALID_PARAMS", False)


async def test_a_key_that_is_not_there_is_named(spec: EngineSpec, tmp_path: Path) -> None:
    adapter = LlamaCppAdapter(attached(spec, tmp_path / "x", api_key_env="NO_SUCH_KEY_IS_SET"))
    with pytest.raises(EngineError, match="NO_SUCH_KEY_IS_SET") as raised:
        await adapter.launch()
    assert raised.value.info.code == "POOL_UNREADY"


async def test_nobody_there_is_told_in_time(spec: EngineSpec) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        adapter = LlamaCppAdapter(replace(spec, endpoint=endpoint, ready_timeout_ms=300))
        with pytest.raises(EngineError, match="not ready after 300 ms") as raised:
            await adapter.launch()
    assert raised.value.info.code == "POOL_UNREADY"


async def test_a_server_with_another_model_is_refused(
    spec: EngineSpec, running: tuple[subprocess.Popen[bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_KEY", KEY)
    other = tmp_path / "other.gguf"
    other.write_bytes(Path(spec.model_path).read_bytes())
    adapter = LlamaCppAdapter(attached(spec, running[1], model_path=str(other)))
    with pytest.raises(EngineError, match=r"serves 'model.gguf'") as raised:
        await adapter.launch()
    assert (raised.value.info.code, raised.value.kind) == ("POOL_UNREADY", "model")


@pytest.mark.req("ORCH-3045")
async def test_what_it_was_started_with_is_not_known_to_be_exact(
    spec: EngineSpec, running: tuple[subprocess.Popen[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_KEY", KEY)
    serial = LlamaCppAdapter(attached(spec, running[1], batch_invariant=None))
    await serial.launch()
    properties = await serial.properties()
    assert (properties.slots, properties.keeps_kv) == (1, False)
    await serial.close()
    declared = LlamaCppAdapter(attached(spec, running[1], slots=9))
    await declared.launch()
    assert (await declared.properties()).slots == 2
    await declared.close()
