"""GPUs and memory as a replica sees them: readings for the metrics, estimates for the preload check."""

from msgspec import Struct


class GpuReading(Struct, frozen=True):
    """One GPU now; None where the driver does not tell. ECC errors are those since the driver was loaded."""

    index: int
    uuid: str
    name: str
    vram_total_bytes: int
    vram_used_bytes: int
    utilization_percent: int | None = None
    ecc_uncorrected: int | None = None

    @property
    def vram_free_bytes(self) -> int:
        return self.vram_total_bytes - self.vram_used_bytes


class GpuCounts(Struct, frozen=True):
    """What the driver told of a replica's GPUs since it was made: single-bit and uncorrected errors, XIDs."""

    ecc_corrected: int = 0
    ecc_uncorrected: int = 0
    xids: int = 0


class MemoryNeed(Struct, frozen=True):
    """What an engine will take: weights, KV for all slots, scratch of each GPU, and host memory.

    `kv_slot_bytes` is the KV of one slot with a full context, so that fewer slots can be reckoned. `slots_max` is
    how many the engine will have at most, whatever was asked for (0: as many as that).
    """

    weights_bytes: int
    kv_slot_bytes: int
    scratch_bytes: int
    host_bytes: int
    slots_max: int = 0
