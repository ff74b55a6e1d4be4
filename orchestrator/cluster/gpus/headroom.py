"""Whether an engine fits before it is launched, and with how many slots (ORCH-3003, ORCH-3052, OC-POOL-3002).

With n slots GPU i needs share_i x (weights + n x KV of a slot) + scratch + margin. So with ratios, KV is capped
by the GPU that runs out first: n x KV <= min over i of (free_i - margin_i - scratch) / share_i - weights. The
sums are exact, so that what is accepted fits to the byte as far as the estimate is right.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from contracts.gpus import GpuReading, MemoryNeed
from contracts.pools import FaultKind

#: Kept free on each GPU and on the host: what estimates leave out, such as fragmentation and other libraries' buffers.
MARGIN_PERCENT: Final = 5
MARGIN_BYTES_MAX: Final = 512 * 2**20
_MIB: Final = 2**20


class HeadroomError(Exception):
    """The engine does not fit; the message holds the numbers and how many slots would fit."""

    kind: FaultKind = "headroom"


def margin_bytes(total_bytes: int) -> int:
    """What is to stay free of a memory of this size."""
    return min(total_bytes * MARGIN_PERCENT // 100, MARGIN_BYTES_MAX)


def slots_that_fit(
    need: MemoryNeed,
    gpus: Sequence[GpuReading],
    tensor_split: Sequence[float],
    slots: int,
    host_free_bytes: int,
) -> int:
    """How many slots to launch with: `slots`, or with ratios perhaps fewer, at least 1.

    Equal GPUs are to hold all slots that were asked for. Without GPUs only the host is checked. The
    ratios must have passed `check_split`. Raises HeadroomError.
    """
    check_host(need, host_free_bytes)
    if not gpus:
        return slots
    shares = _shares(len(gpus), tensor_split)
    fit = min(_slots_on(need, gpu, share, slots) for gpu, share in zip(gpus, shares, strict=True))
    if fit >= slots or (tensor_split and fit >= 1):
        return fit
    raise HeadroomError(_shortage(need, gpus, shares, slots, fit))


def check_host(need: MemoryNeed, free_bytes: int) -> None:
    """Raises HeadroomError when the host's memory is too small by what is free now."""
    margin = margin_bytes(free_bytes)
    if need.host_bytes + margin > free_bytes:
        raise HeadroomError(
            f"host memory: needs {_mib_up(need.host_bytes)} MiB and {_mib_up(margin)} MiB to spare,"
            f" free {free_bytes // _MIB} MiB; free memory on the node, raise its memory limit, or use a smaller model"
        )


def _shares(count: int, tensor_split: Sequence[float]) -> list[Fraction]:
    """Each GPU's share of weights and KV; engines scale ratios to sum to 1, and so do we."""
    ratios = [Fraction(ratio) for ratio in tensor_split] or [Fraction(1)] * count
    return [ratio / sum(ratios) for ratio in ratios]


def _slots_on(need: MemoryNeed, gpu: GpuReading, share: Fraction, slots: int) -> int:
    """How many slots, up to `slots`, one GPU has room for; 0 when not even the weights fit."""
    room = gpu.vram_free_bytes - margin_bytes(gpu.vram_total_bytes) - need.scratch_bytes
    for_kv = room / share - need.weights_bytes
    if for_kv < 0:
        return 0
    return min(slots, math.floor(for_kv / need.kv_slot_bytes)) if need.kv_slot_bytes else slots


def _shortage(need: MemoryNeed, gpus: Sequence[GpuReading], shares: Sequence[Fraction], slots: int, fit: int) -> str:
    asked = max(1, slots)
    lines = []
    for gpu, share in zip(gpus, shares, strict=True):
        parts = {
            "weights": math.ceil(share * need.weights_bytes),
            f"KV of {asked} slots": math.ceil(share * need.kv_slot_bytes * asked),
            "scratch": need.scratch_bytes,
            "margin": margin_bytes(gpu.vram_total_bytes),
        }
        said = ", ".join(f"{name} {_mib_up(size)}" for name, size in parts.items())
        free = gpu.vram_free_bytes // _MIB
        lines.append(f"GPU {gpu.index} ({gpu.uuid}) needs {_mib_up(sum(parts.values()))} MiB ({said}), free {free} MiB")
    advice = f"{fit} slots would fit: set `slots: {fit}` or a smaller `ctx`" if fit else "not one slot fits"
    return f"{'; '.join(lines)}; {advice}, use a smaller model or more GPUs, or free their memory"


def _mib_up(size_bytes: int) -> int:
    return -(-size_bytes // _MIB)
