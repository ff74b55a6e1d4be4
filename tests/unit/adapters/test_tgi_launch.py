"""How the TGI adapter brings a server up: what it says to the launcher, what must be there, how it ends."""

import asyncio
import os
import shlex
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from adapters.tgi import TgiAdapter
from adapters.tgi.command import launcher_command, launcher_environment
from adapters.tgi.model import kv_token_bytes
from contracts.engine import EngineError, EngineSpec, Finish, GenerateRequest
from contracts.gpus import MemoryNeed
from tests.unit.adapters.quick_start import TGI_PEER, write_engine

Launch = Callable[..., Awaitable[TgiAdapter]]

CONFIG = '{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}'
REQUEST = GenerateRequest(task_id="t", max_tokens=5, seed=7, prompt="one two")


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    monkeypatch.setenv("LLORCH_CACHE_DIR", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(CONFIG)
    (model / "model-00001-of-00002.safetensors").write_bytes(b"a" * 700)
    (model / "model-00002-of-00002.safetensors").write_bytes(b"b" * 300)
    return EngineSpec(
        engine="tgi",
        pool_id="p",
        replica_id="p-0",
        model="m",
        model_path=str(model),
        ctx=128,
        slots=4,
        accelerator="cpu-dev",
        binary=str(write_engine(tmp_path, TGI_PEER)),
        ready_timeout_ms=30_000,
    )


@pytest.fixture
async def launch(spec: EngineSpec, tmp_path: Path) -> AsyncIterator[Launch]:
    """Launch adapters on peers with these options and changes of the spec; all are closed at the end."""
    adapters = []

    async def start(*options: str, **changes: Any) -> TgiAdapter:
        binary = str(write_engine(tmp_path, TGI_PEER, *options))
        adapter = TgiAdapter(replace(spec, **({"binary": binary} | changes)))
        adapters.append(adapter)
        await adapter.launch()
        return adapter

    yield start
    for adapter in adapters:
        await adapter.close()


async def generate(adapter: TgiAdapter) -> list[object]:
    return [item async for item in adapter.generate("a", REQUEST)]


@pytest.mark.req("OC-ADAPT-5001", "ORCH-3032")
async def test_a_launched_server_generates_and_ends(launch: Launch, tmp_path: Path) -> None:
    log = tmp_path / "launches"
    adapter = await launch("--peer-launch-log", str(log))
    assert await adapter.healthy()
    properties = await adapter.properties()
    assert (properties.slots, properties.ctx, properties.kv_token_bytes) == (1, 128, 2 * 2 * 2 * 16 * 2)
    assert (await generate(adapter))[-1] == Finish("length", tokens_in=3)
    pid = adapter.pid
    assert pid is not None
    await adapter.close()
    await adapter.close()
    assert not await adapter.healthy()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await adapter.launch()
    assert len(await generate(adapter)) == 6
    first, second = [shlex.split(line) for line in log.read_text().splitlines()]
    folders = [Path(words[words.index("--shard-uds-path") + 1]).parent for words in (first, second)]
    assert [folder.exists() for folder in folders] == [False, True]
    assert folders[1].stat().st_mode & 0o777 == 0o700


@pytest.mark.req("ORCH-3032", "OC-ADAPT-5011")
async def test_the_digest_is_that_of_the_models_folder(launch: Launch, spec: EngineSpec) -> None:
    adapter = await launch()
    digest = (await adapter.properties()).model_digest
    (Path(spec.model_path) / "tokenizer.json").write_text("{}")
    changed = (await adapter.properties()).model_digest
    assert changed != digest
    await launch(model_digest=changed.upper())
    with pytest.raises(EngineError, match="must have") as raised:
        await launch(model_digest=digest)
    assert (raised.value.info.code, raised.value.kind) == ("POOL_UNREADY", "model")


@pytest.mark.req("OC-ADAPT-5002")
async def test_the_key_guards_prompts_and_stays_out_of_sight(launch: Launch, tmp_path: Path) -> None:
    log = tmp_path / "launches"
    await launch("--peer-launch-log", str(log))
    words = shlex.split(log.read_text())
    assert "--api-key" not in words
    assert words[words.index("--hostname") + 1] == "127.0.0.1"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(words[words.index("--port") + 1]))
    writer.write(b'POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{"inputs":"x"}')
    assert (await reader.readline()).startswith(b"HTTP/1.1 401")
    writer.close()
    await writer.wait_closed()


@pytest.mark.req("ORCH-3039")
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Error: ShardCannotStart", "exit"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "vram_oom"),
        ("RuntimeError: unknown model architecture 'x'", "model"),
    ],
)
async def test_what_the_launcher_says_at_its_end_is_understood(launch: Launch, words: str, kind: str) -> None:
    """It logs to stdout, where the last words of an engine are not looked for."""
    with pytest.raises(EngineError, match="ended while starting") as raised:
        await launch("--peer-die-at-launch", words, accelerator="gpu")
    assert raised.value.info.code == "POOL_UNREADY"
    assert raised.value.stderr_tail == (words,)
    assert raised.value.kind == kind


async def test_a_server_that_is_not_ready_in_time_is_given_up(launch: Launch) -> None:
    with pytest.raises(EngineError, match="not ready after 1500 ms") as raised:
        await launch("--peer-load-ms", "60000", ready_timeout_ms=1500)
    assert (raised.value.info.code, raised.value.info.retriable) == ("POOL_UNREADY", True)


@pytest.mark.req("ORCH-3025")
async def test_a_death_amid_a_stream_is_told_twice(launch: Launch) -> None:
    adapter = await launch("--peer-die-after", "2")
    with pytest.raises(EngineError) as raised:
        await generate(adapter)
    assert raised.value.info.code == "WORKER_RESET"
    assert (await asyncio.wait_for(adapter.wait_exit(), 10)).status == -signal.SIGKILL


async def test_health_follows_the_servers_own(launch: Launch, tmp_path: Path) -> None:
    told = tmp_path / "sick"
    adapter = await launch("--peer-unhealthy-file", str(told))
    told.touch()
    assert not await adapter.healthy()
    told.unlink()
    assert await adapter.healthy()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"binary": "/no/such/launcher"}, "engine_options.binary"),
        ({"model_path": "/no/such/model"}, "no folder with a config.json"),
        ({"model_path": ""}, "no folder with a config.json"),
    ],
)
async def test_what_is_missing_is_named(launch: Launch, changes: dict[str, str], message: str) -> None:
    with pytest.raises(EngineError, match=message) as raised:
        await launch(**changes)
    assert (raised.value.info.code, raised.value.info.retriable) == ("POOL_UNREADY", True)


async def test_a_launcher_on_the_path_is_found(launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="no text-generation-launcher on PATH"):
        await launch(binary="")
    write_engine(tmp_path, TGI_PEER).rename(tmp_path / "text-generation-launcher")
    assert await (await launch(binary="")).healthy()


async def test_a_folder_without_weights_is_refused(launch: Launch, spec: EngineSpec) -> None:
    for file in Path(spec.model_path).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(EngineError, match="put the weights there"):
        await launch()


@pytest.mark.req("ORCH-3003", "OC-POOL-3002")
async def test_what_it_takes_is_reckoned_from_the_folder(spec: EngineSpec) -> None:
    need = await TgiAdapter(replace(spec, accelerator="gpu", gpu_uuids=("a", "b"))).memory_need()
    assert need == MemoryNeed(1000, 128 * 256, 1536 * 2**20, 2 * 2048 * 2**20, 1)
    best = await TgiAdapter(replace(spec, determinism="best_effort")).memory_need()
    assert (best.host_bytes, best.slots_max) == (2048 * 2**20 + 1000 + 4 * 128 * 256, 4)
    (Path(spec.model_path) / "config.json").write_text("{}")
    assert kv_token_bytes(spec) == 0
    (Path(spec.model_path) / "config.json").write_bytes(b"[" * 100_000)
    assert kv_token_bytes(spec) == 0


@pytest.mark.req("ORCH-3003")
async def test_arguments_change_what_it_takes(spec: EngineSpec) -> None:
    async def kv_slot_bytes(**changes: Any) -> int:
        return (await TgiAdapter(replace(spec, **changes)).memory_need()).kv_slot_bytes

    assert await kv_slot_bytes(args=("--kv-cache-dtype", "fp8_e5m2")) == 128 * 128
    assert await kv_slot_bytes(env=(("KV_CACHE_DTYPE", "fp8_e4m3fn"),)) == 128 * 128
    assert await kv_slot_bytes(args=("--max-total-tokens=1024", "--dtype", "bfloat16")) == 1024 * 256
    with pytest.raises(EngineError, match="--max-total-tokens many") as refused:
        await kv_slot_bytes(args=("--max-total-tokens", "many"))
    assert refused.value.info.code == "INVALID_PARAMS"


@pytest.mark.req("ORCH-3011", "ORCH-3012")
def test_the_command_line_says_everything(spec: EngineSpec, tmp_path: Path) -> None:
    changed = replace(spec, accelerator="gpu", gpu_uuids=("GPU-a", "GPU-b"), args=("--quantize", "fp8"))
    words = launcher_command(changed, tmp_path, 1, 2, 3)
    assert words[:5] == ["/bin/sh", "-c", 'exec "$@" >&2', "tgi", spec.binary]
    told = dict(zip(words[5::2], words[6::2], strict=True))
    assert told == {
        "--model-id": spec.model_path,
        "--hostname": "127.0.0.1",
        "--port": "1",
        "--prometheus-port": "2",
        "--master-port": "3",
        "--shard-uds-path": str(tmp_path / "shard"),
        "--num-shard": "2",
        "--max-concurrent-requests": "8",
        "--max-input-tokens": "127",
        "--max-total-tokens": "128",
        "--payload-limit": "16777216",
        "--graceful-termination-timeout": "1",
        "--usage-stats": "off",
        "--quantize": "fp8",
    }


@pytest.mark.req("ORCH-3011", "ORCH-3045")
def test_the_environment_is_ours(spec: EngineSpec) -> None:
    inherited = {"HOME": "/h", "MAX_TOTAL_TOKENS": "9", "API_KEY": "theirs", "ATTENTION": "paged", "LOG_LEVEL": "debug"}
    env = launcher_environment(spec, "ours", inherited)
    assert env == {
        "HOME": "/h",
        "API_KEY": "ours",
        "LOG_LEVEL": "warn",
        "HF_HUB_OFFLINE": "1",
        "MAX_IMAGE_FETCH_SIZE": "0",
        "PREFIX_CACHING": "0",
        "CUDA_VISIBLE_DEVICES": "",
    }
    gpu = replace(spec, accelerator="gpu", gpu_uuids=("GPU-a", "GPU-b"), devices=("0", "1"), determinism="best_effort")
    env = launcher_environment(gpu, "ours", {})
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert "PREFIX_CACHING" not in env
