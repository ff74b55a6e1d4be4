"""What an engine's end means, told from its exit status and its last words (ORCH-3039, ORCH-3053).

The words are those of ggml's backends (CUDA, HIP, Vulkan, CPU), of torch as vLLM passes it on, and of
TensorRT-LLM. A running-out of memory comes first: the errors that follow from it look like other faults.
"""

import re
import signal
from typing import Final

from contracts.pools import FaultKind

_KILLED: Final = (-signal.SIGKILL, 128 + signal.SIGKILL)

#: ggml makes do with less after a first failed allocation; what it said up to then is no cause of its end.
_RECOVERED: Final = re.compile(r"retrying without pipeline parallelism")

_VRAM_OOM: Final = (
    r"cudaMalloc failed: out of memory",
    r"\b(?:CUDA|HIP|ROCm) (?:runtime |driver )?error\b.*\bout of memory\b",
    r"\b(?:CUDA|HIP) out of memory\b",
    r"\btorch\.(?:cuda\.)?OutOfMemoryError\b",
    r"\bhipErrorOutOfMemory\b|\bcudaErrorMemoryAllocation\b|\bCUDA_ERROR_OUT_OF_MEMORY\b",
    r"\bErrorOutOfDeviceMemory\b|\bVK_ERROR_OUT_OF_DEVICE_MEMORY\b",
    # `CUDA0` is a GPU's memory, `CUDA_Host` the host's.
    r"\b(?:failed|unable) to allocate (?:CUDA|ROCm|HIP|MUSA|SYCL|Vulkan)\d+ buffer\b",
    r"\bCUBLAS_STATUS_ALLOC_FAILED\b",
    r"\bNo available memory for the cache blocks\b",
    r"\bless than desired GPU memory utilization\b",
    r"\blarger than the available KV cache memory\b",
    r"\[TensorRT-LLM\].*\bout of memory\b",
    r"\bOutOfMemory \(Requested size was\b|\bError Code 2: OutOfMemory\b",
)
_HOST_OOM: Final = (
    r"\bstd::bad_alloc\b",
    # That memory could not be locked is a warning only.
    r"^(?!.*\bmlock\b).*\bCannot allocate memory\b",
    r"\b(?:failed|unable) to allocate (?:CPU|\w+_Host)\w* buffer\b",
    r"\bDefaultCPUAllocator: (?:can't allocate|not enough) memory\b",
    r"(?:^|\s)MemoryError\b",
    r"\bErrorOutOfHostMemory\b",
)
_GPU_LOST: Final = (r"\bGPU is lost\b", r"\bfallen off the bus\b")
_ECC: Final = (r"\buncorrectable ECC error\b", r"\bcudaErrorECCUncorrectable\b", r"\bdouble[- ]bit ECC\b")
_XID: Final = (r"\bXid\b.*\d",)
_DRIVER: Final = (
    r"\b(?:CUDA|HIP|ROCm) (?:runtime |driver |unknown )?error\b",
    r"\billegal memory access\b|\bunspecified launch failure\b|\bdevice-side assert\b",
    r"\bno (?:CUDA|ROCm)-capable device\b|\bCUDA-capable device\(s\) is/are busy\b",
    r"\bdriver version is insufficient\b|\bFound no NVIDIA driver\b|\bdriver initialization failed\b",
    r"\bfailed to initialize (?:CUDA|ROCm)\b",
    r"\bCUBLAS_STATUS_(?!SUCCESS\b)\w+",
    r"\bDeviceLostError\b|\bErrorDeviceLost\b|\bVK_ERROR_DEVICE_LOST\b",
)
_MODEL: Final = (
    r"\b(?:failed to load|error loading) model\b|\bmodel loading error\b",
    r"\binvalid magic\b|\bcorrupted or incomplete\b|\bunknown model architecture\b",
    r"\bfailed to open GGUF file\b",
    r"\bdoes not appear to have a file named\b|\bRepository Not Found\b|\bSafetensorError\b",
    r"\bModel architectures? .*not supported\b",
    r"\bdeserializ\w+ .*(?:failed|assertion)|\bSerialization assertion\b|\bdeserializeCudaEngine\b.*\bfailed\b",
)


def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


#: In the order in which they are looked for.
_OF_GPUS: Final[tuple[tuple[FaultKind, re.Pattern[str]], ...]] = (
    ("vram_oom", _any_of(_VRAM_OOM)),
    ("gpu_lost", _any_of(_GPU_LOST)),
    ("ecc", _any_of(_ECC)),
    ("xid", _any_of(_XID)),
    ("driver", _any_of(_DRIVER)),
)
_OF_HOSTS: Final[tuple[tuple[FaultKind, re.Pattern[str]], ...]] = (
    ("host_oom", _any_of(_HOST_OOM)),
    ("model", _any_of(_MODEL)),
)
_RULES: Final = (_OF_GPUS[0], _OF_HOSTS[0], *_OF_GPUS[1:], _OF_HOSTS[1])


def classify(
    status: int | None, stderr_tail: tuple[str, ...], oom_killed: bool = False, *, gpu: bool = True
) -> FaultKind:
    """Why an engine ended; `exit` where nothing tells.

    `status` is its exit status (negative: signal), `oom_killed` whether the kernel killed something for want of
    memory while it ran. Without `gpu` a driver's complaints are of no account: there is none to be used.
    """
    if oom_killed and status in _KILLED:
        return "host_oom"
    lines = _since_recovery(stderr_tail)
    for kind, pattern in _RULES if gpu else _OF_HOSTS:
        if any(pattern.search(line) for line in lines):
            return kind
    return "exit"


def _since_recovery(lines: tuple[str, ...]) -> tuple[str, ...]:
    for index in range(len(lines) - 1, -1, -1):
        if _RECOVERED.search(lines[index]):
            return lines[index + 1 :]
    return lines
