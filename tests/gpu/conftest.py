"""Engines on a real GPU. Nothing here is skipped: what a test needs and does not find makes it fail and say so.

`LLORCH_GPU_LLAMA` names a llama-server with GPU code (left out: the one that the adapter finds), `LLORCH_GPU_MODEL` a
GGUF file (left out: the bundled one), `LLORCH_GPU_VLLM` a Python with vLLM for CUDA and `LLORCH_GPU_VLLM_MODEL` a
model folder. The folder of the determinism suite's differences is `.llorch/gpu`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.llamacpp.models import bundled_model_path
from adapters.llamacpp.provision import find_engine
from contracts.engine import EngineSpec
from contracts.gpus import GpuReading
from orchestrator.cluster.gpus.mask import resolve_mask
from orchestrator.cluster.gpus.nvml import GpuError, Nvml

OUT = Path(".llorch/gpu")


@pytest.fixture(scope="session")
def nvml() -> Iterator[Nvml]:
    try:
        with Nvml() as driver:
            yield driver
    except GpuError as missing:
        pytest.fail(f"this suite needs an NVIDIA GPU and its driver: {missing}")


@pytest.fixture(scope="session")
def gpu(nvml: Nvml) -> GpuReading:
    """The first GPU of the host."""
    reading = resolve_mask(nvml, [0])[0]
    print(f"\nGPU: {reading.name}, {reading.vram_total_bytes >> 20} MiB")
    return reading


@pytest.fixture(scope="session")
def llama(gpu: GpuReading) -> EngineSpec:
    named = os.environ.get("LLORCH_GPU_LLAMA")
    model = os.environ.get("LLORCH_GPU_MODEL") or str(bundled_model_path("smollm2-135m-instruct"))
    return EngineSpec(
        engine="llamacpp",
        pool_id="gpu",
        replica_id="gpu-0",
        model="gpu-model",
        model_path=model,
        ctx=2048,
        slots=8,
        accelerator="gpu",
        devices=("0",),
        gpu_uuids=(gpu.uuid,),
        binary=str(find_engine(Path(named) if named else None, accelerator="gpu")),
    )


@pytest.fixture(scope="session")
def vllm(gpu: GpuReading) -> EngineSpec:
    binary, model = os.environ.get("LLORCH_GPU_VLLM"), os.environ.get("LLORCH_GPU_VLLM_MODEL")
    if not binary or not model:
        pytest.fail("set LLORCH_GPU_VLLM to a Python with vLLM for CUDA and LLORCH_GPU_VLLM_MODEL to a model folder")
    return EngineSpec(
        engine="vllm",
        pool_id="gpu",
        replica_id="gpu-0",
        model="gpu-model",
        model_path=model,
        ctx=2048,
        slots=8,
        accelerator="gpu",
        devices=("0",),
        gpu_uuids=(gpu.uuid,),
        binary=binary,
        ready_timeout_ms=600_000,
    )
