"""The device mask: which GPUs of this node a replica may use, and how a model is split over them.

Masks are hard (ORCH-3011, OC-POOL-3020): all GPUs of the mask, nobody else's processes on them, or no launch.
"""

import math
from collections.abc import Sequence
from typing import Final

from contracts.gpus import GpuReading
from contracts.pools import FaultKind
from orchestrator.cluster.gpus.nvml import GpuError, Nvml

#: GPUs of one name whose memory differs by more than this are unlike: ECC and board variants change it a little.
UNLIKE_MEMORY: Final = 0.05
_SUM_TOLERANCE: Final = 0.01


class MaskError(Exception):
    """The mask cannot be had on this node as it is; `kind` is `mask`, or what is wrong with one of its GPUs."""

    def __init__(self, message: str, kind: FaultKind = "mask") -> None:
        super().__init__(message)
        self.kind = kind


def resolve_mask(nvml: Nvml, devices: Sequence[int]) -> tuple[GpuReading, ...]:
    """The GPUs of the mask, in its order; the replica's last engine must have ended.

    Raises MaskError for GPUs that are absent, broken or in use, GpuError when the driver is gone.
    """
    count = nvml.count() if devices else 0
    for index in devices:
        if index >= count:
            raise MaskError(_absent(index, count))
    return tuple(_own(nvml, index) for index in devices)


def _own(nvml: Nvml, index: int) -> GpuReading:
    try:
        gpu = nvml.reading(index)
        foreign = nvml.pids(index)
    except GpuError as error:
        if error.driver_gone:
            raise
        raise MaskError(f"the mask asks for GPU {index}, which does not work: {error.text}", error.kind) from None
    if foreign:
        pids = ", ".join(str(pid) for pid in foreign)
        raise MaskError(
            f"GPU {index} ({gpu.uuid}) is used by other processes: pid {pids};"
            " end them or give the pool another GPU, masks are not shared"
        )
    return gpu


def _absent(index: int, count: int) -> str:
    if not count:
        return f"the mask asks for GPU {index}, and this node has no GPUs"
    has = "GPU 0 only" if count == 1 else f"GPUs 0 to {count - 1}"
    return f"the mask asks for GPU {index}, and this node has {has}; correct `devices` or use another node"


def alike(gpus: Sequence[GpuReading]) -> bool:
    """Whether GPUs are of one name, and of one size within `UNLIKE_MEMORY`."""
    sizes = [gpu.vram_total_bytes for gpu in gpus]
    return len({gpu.name for gpu in gpus}) <= 1 and (not sizes or min(sizes) >= (1 - UNLIKE_MEMORY) * max(sizes))


def check_split(gpus: Sequence[GpuReading], tensor_split: Sequence[float]) -> None:
    """Raises MaskError for a split across unlike GPUs without ratios, and for ratios that are off (ORCH-3012)."""
    if not tensor_split:
        if not alike(gpus):
            kinds = ", ".join(f"{gpu.index}: {gpu.name} {gpu.vram_total_bytes >> 20} MiB" for gpu in gpus)
            raise MaskError(
                f"the GPUs of the mask are unlike ({kinds}); say how the model is split, as in"
                " `tensor_split: [0.67, 0.33]`, or use equal ones"
            )
        return
    if len(tensor_split) != len(gpus):
        raise MaskError(f"tensor_split has {len(tensor_split)} ratios for {len(gpus)} GPUs; give one for each")
    if not all(math.isfinite(ratio) and ratio > 0 for ratio in tensor_split):
        raise MaskError(f"tensor_split {list(tensor_split)} has a ratio that is not above 0; leave that GPU out")
    if abs(sum(tensor_split) - 1) > _SUM_TOLERANCE:
        raise MaskError(f"tensor_split sums to {sum(tensor_split):.3f}; make the ratios sum to 1")
