"""Metrics of pools: replicas, launches, restarts, GPU errors, memory (OC-POOL-3030, ORCH-3053, ORCH-3039)."""

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from contracts import pools as ev
from contracts.control import PoolHealth
from contracts.gpus import GpuCounts
from contracts.messages import EngineGauges
from contracts.tasks import ReplicaInfo

_PLACED: Final = ("engine", "engine_version", "pool_id", "replica_id")
_POOL: Final = ("engine", "pool_id")
REPLICA_PHASES: Final = ("pending", "starting", "waiting", "loading", "ready", "suspended", "draining")
#: Faults after which the driver or the GPU begins anew (ORCH-3053).
DRIVER_FAULTS: Final = ("driver", "gpu_lost")


class PoolTelemetry:
    """Counts decisions about pools and shows what replicas read off their GPUs. `engines` is by pool."""

    def __init__(self, engines: Mapping[str, str], registry: CollectorRegistry) -> None:
        self._engines = engines
        self._counted: dict[str, GpuCounts] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, (*_POOL, *labels), registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self._preloads = counter("preload_outcomes_total", "engine launches, by how they ended", "outcome")
        self._restarts = counter("pool_restarts_total", "replicas that failed and are tried again", "reason")
        self._resets = counter("driver_resets_total", "driver errors and lost GPUs")
        self._ecc = counter("ecc_errors_total", "memory errors of GPUs", "replica_id", "kind")
        self._xids = counter("gpu_xid_errors_total", "errors that GPUs told of by XID", "replica_id")
        self._oom = counter("oom_events_total", "engines that ran out of memory", "kind")
        self._changes = counter("pool_changes_total", "decisions about pools", "change")
        self._replicas = gauge("pool_replicas", "replicas by phase", *_POOL, "state")
        self._accelerator = gauge("pool_accelerator", "1 for the kind a pool runs on", *_POOL, "accelerator")
        self._breaker = gauge("launch_breaker_open", "1 while launches are tried one at a time", *_POOL)
        self._utilization = gauge("gpu_utilization", "GPU utilization, percent", *_PLACED, "device")
        self._vram = gauge("vram_used_bytes", "GPU memory in use", *_PLACED, "device")
        self._ram = gauge("host_ram_used_bytes", "memory in use on the replica's host", *_PLACED)

    def ready(self, replica: ReplicaInfo) -> None:
        """An engine came up."""
        self._preloads.labels(replica.engine, replica.pool_id, "ready").inc()

    def noted(self, note: ev.NotePool) -> None:
        """Count a decision; a restart by the fault that it is for."""
        engine = self._engines.get(note.pool_id, "unknown")
        self._changes.labels(engine, note.pool_id, note.change).inc()
        if note.change != "restart" or note.kind is None:
            return
        self._restarts.labels(engine, note.pool_id, note.kind).inc()
        self._preloads.labels(engine, note.pool_id, note.kind).inc()
        if note.kind in DRIVER_FAULTS:
            self._resets.labels(engine, note.pool_id).inc()
        elif note.kind in ("vram_oom", "host_oom"):
            self._oom.labels(engine, note.pool_id, note.kind.removesuffix("_oom")).inc()

    def gauges(self, replica: ReplicaInfo, scrape: EngineGauges) -> None:
        """What a replica read off its GPUs and its host; a GPU is named by its UUID."""
        placed = (replica.engine, replica.engine_version, replica.pool_id, replica.replica_id)
        for gpu in scrape.gpus:
            self._vram.labels(*placed, gpu.uuid).set(gpu.vram_used_bytes)
            if gpu.utilization_percent is not None:
                self._utilization.labels(*placed, gpu.uuid).set(gpu.utilization_percent)
        self._count(replica, scrape.gpu_counts)
        if scrape.host_ram_used_bytes is not None:
            self._ram.labels(*placed).set(scrape.host_ram_used_bytes)

    def _count(self, replica: ReplicaInfo, now: GpuCounts) -> None:
        """A replica counts from its birth; one that was made anew begins at zero."""
        before = self._counted.get(replica.replica_id, GpuCounts())
        self._counted[replica.replica_id] = now
        if now.xids < before.xids or now.ecc_uncorrected < before.ecc_uncorrected:
            before = GpuCounts()
        labels = (replica.engine, replica.pool_id, replica.replica_id)
        self._xids.labels(*labels).inc(now.xids - before.xids)
        self._ecc.labels(*labels, "uncorrected").inc(now.ecc_uncorrected - before.ecc_uncorrected)
        self._ecc.labels(*labels, "corrected").inc(max(0, now.ecc_corrected - before.ecc_corrected))

    def render(self, pools: list[PoolHealth]) -> None:
        """Show how the pools stand now."""
        for pool in pools:
            phases = [replica.phase for replica in pool.replicas]
            for phase in REPLICA_PHASES:
                self._replicas.labels(pool.engine, pool.pool_id, phase).set(phases.count(phase))
            self._accelerator.labels(pool.engine, pool.pool_id, pool.accelerator).set(1)
            self._breaker.labels(pool.engine, pool.pool_id).set(pool.breaker == "open")
