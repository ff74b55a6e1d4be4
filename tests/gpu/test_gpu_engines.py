"""Real engines on a real GPU: they use it, take what was reckoned, let go of it, and keep their bytes."""

import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from adapters import create_adapter
from adapters.testing.determinism.suite import examine
from adapters.testing.determinism.tasks import PLAN_DEFAULT
from contracts.engine import Chunk, EngineAdapter, EngineError, EngineSpec, Finish, GenerateRequest
from orchestrator.cluster.gpus.nvml import Nvml
from orchestrator.cluster.self_test import self_test
from tests.gpu.conftest import OUT

ENGINES = ["llama", "vllm"]
LONG = GenerateRequest(task_id="long", max_tokens=1500, seed=1, prompt="Once upon a time")
#: Other users of the GPU come and go, and drivers keep small change.
NOISE_BYTES = 256 << 20


@pytest.fixture
def spec(request: pytest.FixtureRequest) -> EngineSpec:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, EngineSpec)
    return found


@contextlib.asynccontextmanager
async def running(spec: EngineSpec) -> AsyncIterator[EngineAdapter]:
    adapter = create_adapter(spec)
    await adapter.launch()
    try:
        yield adapter
    finally:
        await adapter.close()


@pytest.mark.req("ORCH-3049", "ORCH-3054", "ORCH-3055")
@pytest.mark.parametrize("spec", ENGINES, indirect=True)
async def test_the_startup_self_test_passes(spec: EngineSpec) -> None:
    async with running(spec) as adapter:
        print(f"\n{spec.engine}: {await self_test(adapter, spec) / 1e6:.1f} ms a token, alone")


@pytest.mark.req("ORCH-3003", "OC-POOL-3002")
async def test_the_memory_estimate_is_high_and_not_absurd(llama: EngineSpec, nvml: Nvml) -> None:
    adapter = create_adapter(llama)
    need = await adapter.memory_need()
    slots = need.slots_max or llama.slots
    reckoned = need.weights_bytes + slots * need.kv_slot_bytes + need.scratch_bytes
    before = nvml.reading(0).vram_used_bytes
    await adapter.launch()
    try:
        await self_test(adapter, llama)
        taken = nvml.reading(0).vram_used_bytes - before
    finally:
        await adapter.close()
    print(f"\nreckoned {reckoned >> 20} MiB, taken {taken >> 20} MiB")
    assert need.weights_bytes - NOISE_BYTES < taken < reckoned + NOISE_BYTES


@pytest.mark.req("ORCH-3017")
@pytest.mark.parametrize("spec", ENGINES, indirect=True)
async def test_a_cancel_frees_the_slot(spec: EngineSpec) -> None:
    async with running(spec) as adapter:
        stream = adapter.generate("a/1", LONG)
        assert isinstance(await anext(stream), Chunk)
        begin = time.monotonic()
        await adapter.cancel("a/1")
        print(f"\n{spec.engine}: the slot was free after {(time.monotonic() - begin) * 1000:.0f} ms")
        assert [item async for item in stream if isinstance(item, Finish)] == []
        assert (await adapter.metrics()).requests_processing == 0


@pytest.mark.req("ORCH-3012")
async def test_a_mask_that_the_engine_does_not_find_is_refused(llama: EngineSpec) -> None:
    wrong = replace(llama, devices=("99",), gpu_uuids=("GPU-00000000-0000-0000-0000-000000000000",))
    with pytest.raises(EngineError) as raised:
        await create_adapter(wrong).launch()
    assert raised.value.kind == "mask"


@pytest.mark.req("ORCH-3050", "OC-TEST-7001")
@pytest.mark.parametrize("spec", ENGINES, indirect=True)
async def test_one_at_a_time_is_exact(spec: EngineSpec) -> None:
    report = await examine(create_adapter, [spec, spec], PLAN_DEFAULT, out=OUT)
    assert report.green, report.artefacts


@pytest.mark.req("ORCH-3050")
async def test_whether_batches_are_exact_is_told(llama: EngineSpec) -> None:
    """Measured, not promised: what it says is what `batch_invariant` of a pool on this hardware may be set to."""
    declared = replace(llama, batch_invariant=True)
    report = await examine(create_adapter, [declared, declared], PLAN_DEFAULT, out=OUT)
    print(f"\nllama.cpp with {report.slots} slots in use: {'exact' if report.green else 'NOT exact'} on this GPU")
    assert report.slots == llama.slots


@pytest.mark.req("ORCH-3050")
async def test_vllm_is_exact_in_batches_with_its_batch_invariant_kernels(vllm: EngineSpec) -> None:
    invariant = replace(vllm, env=(("VLLM_BATCH_INVARIANT", "1"),))
    report = await examine(create_adapter, [invariant, invariant], PLAN_DEFAULT, out=OUT)
    assert report.slots == vllm.slots
    assert report.green, report.artefacts
