"""Launches that fail, and what they say: kinds, last words without secrets, GPUs and model files that are not right."""

import hashlib
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.llamacpp import LlamaCppAdapter
from adapters.redaction import MASK
from adapters.testing.fake_launch import PLANTED_SECRET
from contracts.engine import EngineError, EngineSpec, GenerateRequest
from tests.unit.adapters.quick_start import FAKE_LLAMA, write_engine


async def refused(spec: EngineSpec) -> EngineError:
    """The error with which a launch fails."""
    adapter = LlamaCppAdapter(spec)
    with pytest.raises(EngineError) as raised:
        await adapter.launch()
    assert adapter.pid is None
    return raised.value


def on_gpus(spec: EngineSpec, folder: Path, count: int, *args: str) -> EngineSpec:
    """`spec` on GPUs that the fake engine pretends to find."""
    binary = write_engine(folder, FAKE_LLAMA, "--fake-gpu")
    devices = tuple(str(index) for index in range(count))
    uuids = tuple(f"GPU-{index}" for index in range(count))
    return replace(spec, accelerator="gpu", devices=devices, gpu_uuids=uuids, binary=str(binary), args=args)


def script(folder: Path, text: str) -> str:
    path = folder / "engine.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.req("ORCH-3003")
async def test_launch_gives_up_after_the_ready_timeout(spec: EngineSpec, tmp_path: Path) -> None:
    # The first words come before the engine's own start, which may take long where much else runs.
    prefix = (script(tmp_path, 'echo "on its way" >&2; exec "$@"'),)
    args = ("--fake-load-ms", "60000")
    adapter = LlamaCppAdapter(replace(spec, command_prefix=prefix, args=args, ready_timeout_ms=1500))
    with pytest.raises(EngineError, match="not ready after 1500 ms") as raised:
        await adapter.launch()
    assert (raised.value.info.code, raised.value.kind) == ("POOL_UNREADY", "launch")
    assert raised.value.stderr_tail[0] == "on its way"
    assert not await adapter.healthy()


@pytest.mark.req("ORCH-3003")
@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("echo first >&2; echo 'failed to load model' >&2; exit 3", "model", "exit status 3: failed to load model"),
        ("echo 'std::bad_alloc' >&2; exit 134", "host_oom", "exit status 134: std::bad_alloc"),
        ("kill -ILL $$", "exit", "SIGILL"),
    ],
)
async def test_an_engine_that_ends_while_starting_says_why(
    spec: EngineSpec, tmp_path: Path, text: str, kind: str, message: str
) -> None:
    error = await refused(replace(spec, binary=script(tmp_path, text)))
    assert (error.info.code, error.info.retriable, error.kind) == ("POOL_UNREADY", True, kind)
    assert message in error.info.message
    assert "SIGILL" in message or error.stderr_tail[-1] in message


@pytest.mark.parametrize(("field", "kind"), [("binary", "launch"), ("model_path", "model")])
async def test_missing_files_are_named(spec: EngineSpec, field: str, kind: str) -> None:
    error = await refused(replace(spec, **{field: "/nowhere/x"}))
    assert "/nowhere/x" in error.info.message
    assert (error.info.code, error.kind) == ("POOL_UNREADY", kind)


@pytest.mark.req("ORCH-3039", "ORCH-3053")
async def test_running_out_of_gpu_memory_is_told_apart_and_fewer_slots_help(spec: EngineSpec, tmp_path: Path) -> None:
    crowded = on_gpus(spec, tmp_path, 1, "--fake-oom", "2")
    error = await refused(replace(crowded, slots=3))
    assert error.kind == "vram_oom"
    assert any("cudaMalloc failed: out of memory" in line for line in error.stderr_tail)
    adapter = LlamaCppAdapter(crowded)
    await adapter.launch()
    assert await adapter.healthy()
    await adapter.close()


@pytest.mark.req("ORCH-3053", "OC-POOL-3010")
async def test_an_engine_that_dies_in_service_says_why(spec: EngineSpec, tmp_path: Path) -> None:
    words = "CUDA error: unspecified launch failure"
    adapter = LlamaCppAdapter(on_gpus(spec, tmp_path, 1, "--fake-die-after", "2", "--fake-last-words", words))
    await adapter.launch()
    with pytest.raises(EngineError):
        [item async for item in adapter.generate("a", GenerateRequest(task_id="t", max_tokens=9, seed=1, prompt="x"))]
    ended = await adapter.wait_exit()
    await adapter.close()
    assert (ended.status, ended.kind, ended.stderr_tail[-1]) == (-signal.SIGKILL, "driver", words)


@pytest.mark.req("ORCH-3053", "OC-CTRL-2041")
async def test_a_broken_engine_is_reported_without_its_secrets(spec: EngineSpec, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    spec = replace(spec, args=("--fake-broken-while", str(broken), "--fake-exit-status", "7"))
    error = await refused(spec)
    assert "exit status 7: fake engine: broken, HF_TOKEN=" in error.info.message
    told = error.info.message + "".join(error.stderr_tail)
    assert PLANTED_SECRET not in told
    assert told.count(MASK) == 6
    broken.unlink()
    adapter = LlamaCppAdapter(spec)
    await adapter.launch()
    assert await adapter.healthy()
    await adapter.close()


@pytest.mark.req("ORCH-3053")
async def test_the_fake_fails_as_often_as_it_is_told(spec: EngineSpec, tmp_path: Path) -> None:
    launches = tmp_path / "launches"
    counted = ("--fake-launches", str(launches), "--fake-fail-first", "1", "--fake-fail-after", "2")
    adapter = LlamaCppAdapter(replace(spec, args=counted))
    with pytest.raises(EngineError, match="launch 1 of 1 that fail"):
        await adapter.launch()
    await adapter.launch()
    with pytest.raises(EngineError, match="launch 3 fails, as all do after 2") as raised:
        await adapter.launch()
    assert raised.value.kind == "exit"
    assert len(launches.read_text().splitlines()) == 3
    error = await refused(replace(spec, args=("--fake-die-at-launch", "NVRM: Xid (PCI:0000:3b:00): 48")))
    assert error.kind == "exit"  # development on the CPU knows no GPU faults
    error = await refused(on_gpus(spec, tmp_path, 1, "--fake-die-at-launch", "NVRM: Xid (PCI:0000:3b:00): 48"))
    assert error.kind == "xid"


@pytest.mark.req("ORCH-3037")
async def test_another_model_file_than_asked_for_is_refused(spec: EngineSpec) -> None:
    content = Path(spec.model_path).read_bytes()
    found, wanted = (f"sha256:{hashlib.sha256(data).hexdigest()}" for data in (content, b"another"))
    error = await refused(replace(spec, model_digest=wanted))
    assert (error.info.code, error.kind) == ("POOL_UNREADY", "model")
    assert found in error.info.message
    assert wanted in error.info.message
    with pytest.raises(EngineError, match="must have"):
        await LlamaCppAdapter(replace(spec, model_digest=wanted)).memory_need()
    adapter = LlamaCppAdapter(replace(spec, model_digest=found))
    await adapter.launch()
    await adapter.close()


@pytest.mark.req("ORCH-1101", "ORCH-3018")
async def test_a_gpu_pool_never_runs_on_an_engine_without_one(spec: EngineSpec) -> None:
    adapter = LlamaCppAdapter(replace(spec, accelerator="gpu"))
    with pytest.raises(EngineError) as raised:
        await adapter.launch()
    assert (raised.value.info.code, raised.value.kind) == ("POOL_UNAVAILABLE", "mask")
    with pytest.raises(EngineError, match="not running"):
        await adapter.properties()


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
async def test_the_engine_sees_exactly_the_gpus_of_its_mask(spec: EngineSpec, tmp_path: Path) -> None:
    two = on_gpus(spec, tmp_path, 2)
    adapter = LlamaCppAdapter(two)
    await adapter.launch()
    environment = Path(f"/proc/{adapter.pid}/environ").read_bytes().split(b"\0")
    await adapter.close()
    assert b"CUDA_VISIBLE_DEVICES=GPU-0,GPU-1" in environment
    lists_three = script(tmp_path, "printf 'Available devices:\\n  CUDA0: a\\n  CUDA1: b\\n  CUDA2: c\\n'")
    error = await refused(replace(two, binary=lists_three))
    assert (error.info.code, error.kind) == ("POOL_UNAVAILABLE", "mask")
    assert "the mask holds 2 GPUs (GPU-0, GPU-1) and the engine finds 3 (CUDA0, CUDA1, CUDA2)" in error.info.message


@pytest.mark.req("ORCH-3013")
async def test_a_prefix_comes_before_the_engine(spec: EngineSpec, tmp_path: Path) -> None:
    prefix = script(tmp_path, 'echo "$1 $2" >&2; shift 2; exec "$@"')
    adapter = LlamaCppAdapter(replace(spec, command_prefix=(prefix, "--cpunodebind=1", "--preferred=1")))
    await adapter.launch()
    assert await adapter.healthy()
    await adapter.close()
    error = await refused(
        replace(spec, command_prefix=(prefix, "--cpunodebind=1", "--preferred=1"), args=("--fake-die-at-launch", "x"))
    )
    assert error.stderr_tail[0] == "--cpunodebind=1 --preferred=1"
