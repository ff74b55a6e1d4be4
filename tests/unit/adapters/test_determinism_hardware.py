"""What the suite takes the hardware for: what bits depend on and nothing else."""

import pynvml
import pytest

from adapters.testing.determinism.hardware import cpu_kind, gpu_kind, hardware_kind
from contracts.engine import EngineSpec

CPU = "processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t\t: fpu sse4_2 avx2 fma hypervisor\n"
SPEC = EngineSpec(
    engine="e", pool_id="p", replica_id="A", model="m", model_path="", ctx=64, slots=4, accelerator="cpu-dev"
)


@pytest.mark.req("ORCH-3047")
def test_a_cpu_is_its_name_and_its_instruction_sets() -> None:
    kind = cpu_kind(CPU, "x86_64")
    assert kind.startswith("x86_64 AMD EPYC 7B13, instruction sets ")
    assert cpu_kind(CPU.replace(" hypervisor", " mce"), "x86_64") == kind
    for other in (CPU.replace("avx2", "avx512f"), CPU.replace("7B13", "9654"), CPU.replace(" fma", "")):
        assert cpu_kind(other, "x86_64") != kind
    assert cpu_kind(CPU, "aarch64") != kind
    assert cpu_kind("", "riscv64").startswith("riscv64 unknown, ")
    assert hardware_kind(SPEC) == hardware_kind(SPEC)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A driver of two GPUs; what was asked of it."""
    asked: list[str] = []
    calls = {
        "nvmlInit": lambda: asked.append("init"),
        "nvmlShutdown": lambda: asked.append("shutdown"),
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: f"index {index}",
        "nvmlDeviceGetHandleByUUID": lambda uuid: f"uuid {uuid}",
        "nvmlDeviceGetName": lambda handle: f"H100 ({handle})",
        "nvmlSystemGetDriverVersion": lambda: "570.1",
    }
    for name, call in calls.items():
        monkeypatch.setattr(pynvml, name, call)
    return asked


@pytest.mark.req("ORCH-3047")
def test_a_gpu_is_its_name_and_its_driver(driver: list[str]) -> None:
    assert gpu_kind(["1"]) == "H100 (index 1), driver 570.1"
    assert gpu_kind(["GPU-a"]) == "H100 (uuid GPU-a), driver 570.1"
    assert gpu_kind([]) == "H100 (index 0) + H100 (index 1), driver 570.1"
    assert driver == ["init", "shutdown"] * 3


def test_a_driver_that_cannot_say_is_an_error(driver: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: object) -> str:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lost)
    with pytest.raises(OSError, match="cannot say which GPUs"):
        gpu_kind(["0"])
    assert driver == ["init", "shutdown"]
