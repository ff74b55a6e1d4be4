"""The real driver answers what the pools ask of it."""

import pytest

from contracts.gpus import GpuReading
from orchestrator.cluster.gpus.mask import MaskError, resolve_mask
from orchestrator.cluster.gpus.nvml import Events, Nvml


@pytest.mark.req("ORCH-3011")
def test_readings_are_those_of_a_gpu(gpu: GpuReading) -> None:
    assert gpu.uuid.startswith("GPU-")
    assert 0 < gpu.vram_used_bytes < gpu.vram_total_bytes
    assert gpu.utilization_percent is None or 0 <= gpu.utilization_percent <= 100


@pytest.mark.req("ORCH-3053")
def test_events_can_be_watched(nvml: Nvml) -> None:
    events = Events(nvml, [0])
    try:
        assert events.wait(50) is None
    finally:
        events.close()


@pytest.mark.req("ORCH-3011")
def test_a_gpu_that_is_not_there_is_refused(nvml: Nvml) -> None:
    with pytest.raises(MaskError, match="GPU"):
        resolve_mask(nvml, [nvml.count()])
