"""What the engine computes on, as far as its bits depend on it (ORCH-3047)."""

import hashlib
import platform
import re
from collections.abc import Sequence
from typing import Final

import pynvml

from adapters.llamacpp.cpu import cpu_flags, read_cpuinfo
from contracts.engine import EngineSpec

#: Instruction sets by which kernels are chosen; flags of virtual machines and of the kernel are none.
_ARITHMETIC: Final = re.compile(r"^(amx|avx|sse|ssse|fma|f16c|bmi|vnni|asimd|sve|sme|i8mm|bf16|fphp|pni)")
_MODEL: Final = re.compile(r"^(?:model name|Hardware|CPU part)\s*:\s*(.+)$", re.MULTILINE)


def hardware_kind(spec: EngineSpec) -> str:
    """The CPU's name and instruction sets; for a GPU pool the names of its GPUs, and their driver.

    Raises OSError where the driver cannot be asked.
    """
    if spec.accelerator == "gpu":
        return gpu_kind(spec.gpu_uuids or spec.devices)
    return cpu_kind(read_cpuinfo(), platform.machine())


def cpu_kind(cpuinfo: str, machine: str) -> str:
    """From the kernel's description of the CPU."""
    model = _MODEL.search(cpuinfo)
    flags = sorted(flag for flag in cpu_flags(cpuinfo) if _ARITHMETIC.match(flag))
    digest = hashlib.sha256(" ".join(flags).encode()).hexdigest()[:8]
    return f"{machine} {model[1].strip() if model else 'unknown'}, instruction sets {digest}"


def gpu_kind(devices: Sequence[str]) -> str:
    """From the driver: of the GPUs with these indices or UUIDs, of all where none are named."""
    try:
        pynvml.nvmlInit()
        try:
            handles = [_handle(device) for device in devices or map(str, range(pynvml.nvmlDeviceGetCount()))]
            names = [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
            driver = str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise OSError(f"the GPU driver cannot say which GPUs there are: {error}") from None
    return f"{' + '.join(names)}, driver {driver}"


def _handle(device: str) -> object:
    if device.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(device))
    return pynvml.nvmlDeviceGetHandleByUUID(device)
