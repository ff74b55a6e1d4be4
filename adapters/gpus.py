"""The device mask of a replica, as its engine is told (ORCH-3011)."""

from contracts.engine import EngineSpec


def gpu_count(spec: EngineSpec) -> int:
    """How many GPUs the mask holds; 0 where it is not told, and for development on the CPU."""
    return 0 if spec.accelerator == "cpu-dev" else len(spec.gpu_uuids) or len(spec.devices)
