"""What a replica checks before its engine is launched: its GPUs, the split, and room in memory (ORCH-3003, ORCH-3011).

With `accelerator: cpu-dev` no driver is asked and no GPU is given to the engine (ORCH-1101).
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import structlog
from msgspec.structs import replace

from contracts.engine import EngineAdapter, EngineError, EngineProperties, EngineSpec
from contracts.errors import ErrorInfo
from contracts.gpus import MemoryNeed
from contracts.messages import EngineGauges
from contracts.pools import FaultKind
from contracts.tasks import ReplicaInfo
from orchestrator.cluster.gpus.headroom import HeadroomError, slots_that_fit
from orchestrator.cluster.gpus.host import read_host
from orchestrator.cluster.gpus.mask import MaskError, check_split, resolve_mask
from orchestrator.cluster.gpus.nvml import GpuError, Nvml
from orchestrator.cluster.gpus.topology import common_numa_node, distance, numactl_prefix
from orchestrator.cluster.gpus.watch import GpuFault, GpuWatch
from orchestrator.cluster.self_test import Shown

log = structlog.get_logger(__name__)


class Prepared(NamedTuple):
    """What is launched, and how far its GPUs are apart."""

    spec: EngineSpec
    distance: int = 0


class Preload:
    """The GPUs of one replica, watched from `start` to `stop`; must be made on the loop that is told of faults."""

    def __init__(self, spec: EngineSpec, tell: Callable[[GpuFault], None]) -> None:
        self._spec = spec
        self._devices = tuple(int(device) for device in spec.devices) if spec.accelerator == "gpu" else ()
        self._watch = GpuWatch(self._devices, tell, asyncio.get_running_loop())

    def start(self) -> None:
        self._watch.start()

    def stop(self) -> None:
        self._watch.stop()

    def gauges(self, kv_usage_ratio: float | None) -> EngineGauges:
        """What the metrics page shows of the engine, the GPUs as last read, and the host."""
        watch = self._watch
        return EngineGauges(self._spec.replica_id, kv_usage_ratio, watch.readings, watch.counts, read_host().used_bytes)

    async def prepare(self, slots: int, adapter: EngineAdapter) -> Prepared:
        """What to launch to serve `slots` attempts at once, or fewer where a split allows no more (ORCH-3052).

        Raises EngineError with the kind of what is in the way, and numbers where memory is short.
        """
        need = await adapter.memory_need()
        asked = min(slots, need.slots_max or slots)
        self._watch.renew()
        try:
            prepared = await asyncio.to_thread(self._fit, asked, need)
        except (MaskError, HeadroomError, GpuError) as unfit:
            raise self._unready(str(unfit), unfit.kind) from None
        if prepared.spec.slots < asked:
            log.warning("slots.capped", replica_id=self._spec.replica_id, asked=asked, fit=prepared.spec.slots)
        return prepared

    def _fit(self, slots: int, need: MemoryNeed) -> Prepared:
        spec, free_bytes = self._spec, read_host().available_bytes
        if spec.accelerator != "gpu":
            return Prepared(replace(spec, slots=slots_that_fit(need, (), (), slots, free_bytes)))
        with Nvml() as nvml:
            gpus = resolve_mask(nvml, self._devices)
            check_split(gpus, spec.tensor_split)
            fit = slots_that_fit(need, gpus, spec.tensor_split, slots, free_bytes)
            node = common_numa_node(nvml, self._devices) if spec.numa else None
            prefix, apart = numactl_prefix(node), distance(nvml, self._devices)
        uuids = tuple(gpu.uuid for gpu in gpus)
        return Prepared(replace(spec, slots=fit, gpu_uuids=uuids, command_prefix=prefix), apart)

    def _unready(self, message: str, kind: FaultKind) -> EngineError:
        spec = self._spec
        info = ErrorInfo("POOL_UNREADY", message, engine=spec.engine, pool_id=spec.pool_id, retriable=True)
        return EngineError(info, kind)


def replica_info(prepared: Prepared, properties: EngineProperties, shown: Shown, node_id: str) -> ReplicaInfo:
    """What a Ready replica tells of itself."""
    spec = prepared.spec
    return ReplicaInfo(
        replica_id=spec.replica_id,
        pool_id=spec.pool_id,
        engine=spec.engine,
        engine_version=properties.engine_version,
        model_digest=properties.model_digest,
        ctx=properties.ctx,
        slots=properties.slots,
        sampler_profile_version=spec.sampler_profile_version,
        accelerator=spec.accelerator,
        node_id=node_id,
        devices=spec.devices,
        token_ns=shown.token_ns,
        interruptible_decode=properties.interruptible_decode,
        zone=spec.zone,
        kv_tokens=properties.kv_tokens,
        kv_token_bytes=properties.kv_token_bytes,
        keeps_kv=properties.keeps_kv,
        distance=prepared.distance,
        gpu_uuids=spec.gpu_uuids,
        exact=properties.exact,
        result_bytes=shown.result_bytes,
    )
