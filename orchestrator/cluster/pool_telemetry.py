"""Metrics of pools: replicas, launches, restarts, GPU errors, memory (OC-POOL-3030, ORCH-3053, ORCH-3039)."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from contracts import pools as ev
from contracts import scheduling as core
from contracts.control import PoolHealth
from contracts.gpus import GpuCounts
from contracts.messages import EngineGauges
from contracts.tasks import ReplicaInfo

_PLACED: Final = ("engine", "engine_version", "pool_id", "replica_id")
_POOL: Final = ("engine", "pool_id")
REPLICA_PHASES: Final = ("pending", "starting", "waiting", "loading", "ready", "suspended", "draining")
#: Faults after which the driver or the GPU begins anew (ORCH-3053).
DRIVER_FAULTS: Final = ("driver", "gpu_lost")


#: A gauge's series, by its labels.
_Series = tuple[Gauge, tuple[str, ...]]


class PoolTelemetry:
    """Counts decisions about pools and shows what replicas read off their GPUs. `engines` is by pool."""

    def __init__(self, engines: Mapping[str, str], registry: CollectorRegistry) -> None:
        self._engines = engines
        self._orders: dict[str, ev.ReplicaOrder] = {}
        #: Replicas whose engine comes up, and as what it counts if nobody tells how that ended.
        self._launching: dict[str, ev.FaultKind] = {}
        self._counted: dict[str, GpuCounts] = {}
        #: Replicas that serve, and the series that are shown of each.
        self._shown: dict[str, tuple[_Series, ...]] = {}

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

    # --------------------------------------------------------------------- told of

    def happened(self, event: core.AnyEvent) -> None:
        """Account an event; most are not about replicas."""
        account = _HAPPENED.get(type(event))
        if account is not None:
            account(self, event)

    def decided(self, command: core.AnyCommand) -> None:
        """Account a command about a replica."""
        account = _DECIDED.get(type(command))
        if account is not None:
            account(self, command)

    def _ready(self, event: core.ReplicaReady) -> None:
        replica_id = event.replica.replica_id
        self._down(replica_id)  # also what an earlier version of its engine showed
        self._shown[replica_id] = ()
        self._launch_ended(replica_id, "ready")

    def _unready(self, event: core.ReplicaUnready) -> None:
        self._down(event.replica_id)
        self._launch_ended(event.replica_id, event.kind)

    def _lost(self, event: core.ReplicaLost) -> None:
        # An engine that was coming up may go on doing so: perhaps the link alone was cut.
        self._down(event.replica_id)

    def _gone(self, event: ev.ReplicaGone) -> None:
        order = self._orders.get(event.replica_id)
        if order is not None and order.incarnation == event.incarnation:
            self._down(event.replica_id)
            self._launch_ended(event.replica_id, event.kind)

    def _ordered(self, command: ev.OrderReplica) -> None:
        """Its actor is made anew: whatever the one before it did is over, and its GPUs are counted from zero."""
        order = command.order
        self._down(order.replica_id)
        self._launch_ended(order.replica_id, self._launching.get(order.replica_id, "actor"))
        self._counted.pop(order.replica_id, None)
        self._orders[order.replica_id] = order

    def _launched(self, command: ev.LaunchEngine) -> None:
        self._down(command.replica_id)
        self._launching[command.replica_id] = "actor"

    def _retired(self, command: ev.RetireReplica) -> None:
        """Nobody waits for the end of its launch any more: that is no outcome."""
        self._down(command.replica_id)
        self._launching.pop(command.replica_id, None)
        self._counted.pop(command.replica_id, None)
        self._orders.pop(command.replica_id, None)

    def _launch_ended(self, replica_id: str, outcome: str) -> None:
        """Count a launch, once; engines that fail after they served are no launches any more."""
        order = self._orders.get(replica_id)
        if self._launching.pop(replica_id, None) is not None and order is not None:
            self._preloads.labels(self._engine(order.pool_id), order.pool_id, outcome).inc()

    def _down(self, replica_id: str) -> None:
        """A replica does not serve (any more): what was read off its GPUs and its host is not shown any longer."""
        for gauge, labels in self._shown.pop(replica_id, ()):
            gauge.remove(*labels)

    def _engine(self, pool_id: str) -> str:
        return self._engines.get(pool_id, "unknown")

    def noted(self, note: ev.NotePool) -> None:
        """Count a decision; a restart by the fault that it is for."""
        engine = self._engine(note.pool_id)
        self._changes.labels(engine, note.pool_id, note.change).inc()
        if note.change != "restart" or note.kind is None:
            return
        self._restarts.labels(engine, note.pool_id, note.kind).inc()
        if note.replica_id in self._launching:
            self._launching[note.replica_id] = note.kind
        if note.kind in DRIVER_FAULTS:
            self._resets.labels(engine, note.pool_id).inc()
        elif note.kind in ("vram_oom", "host_oom"):
            self._oom.labels(engine, note.pool_id, note.kind.removesuffix("_oom")).inc()

    # ------------------------------------------------------------------------ shown

    def gauges(self, replica: ReplicaInfo, scrape: EngineGauges) -> None:
        """What a replica read off its GPUs and its host, until it tells more or goes down; a GPU is named by its UUID.

        Told by one that is down already, it is late and not shown.
        """
        before = self._shown.get(replica.replica_id)
        if before is None:
            return
        self._count(replica, scrape.gpu_counts)
        placed = (replica.engine, replica.engine_version, replica.pool_id, replica.replica_id)
        told: dict[_Series, int] = {}
        for gpu in scrape.gpus:
            told[self._vram, (*placed, gpu.uuid)] = gpu.vram_used_bytes
            if gpu.utilization_percent is not None:
                told[self._utilization, (*placed, gpu.uuid)] = gpu.utilization_percent
        if scrape.host_ram_used_bytes is not None:
            told[self._ram, placed] = scrape.host_ram_used_bytes
        for series in before:
            if series not in told:  # such as those of a GPU that is lost
                series[0].remove(*series[1])
        for (gauge, labels), value in told.items():
            gauge.labels(*labels).set(value)
        self._shown[replica.replica_id] = tuple(told)

    def _count(self, replica: ReplicaInfo, now: GpuCounts) -> None:
        """A replica counts from its birth; one that was made anew begins at zero."""
        before = self._counted.get(replica.replica_id, GpuCounts())
        self._counted[replica.replica_id] = now
        if (
            now.xids < before.xids
            or now.ecc_uncorrected < before.ecc_uncorrected
            or now.ecc_corrected < before.ecc_corrected
        ):
            before = GpuCounts()
        labels = (replica.engine, replica.pool_id, replica.replica_id)
        self._xids.labels(*labels).inc(now.xids - before.xids)
        self._ecc.labels(*labels, "uncorrected").inc(now.ecc_uncorrected - before.ecc_uncorrected)
        self._ecc.labels(*labels, "corrected").inc(now.ecc_corrected - before.ecc_corrected)

    def render(self, pools: list[PoolHealth]) -> None:
        """Show how the pools stand now."""
        for pool in pools:
            phases = [replica.phase for replica in pool.replicas]
            for phase in REPLICA_PHASES:
                self._replicas.labels(pool.engine, pool.pool_id, phase).set(phases.count(phase))
            self._accelerator.labels(pool.engine, pool.pool_id, pool.accelerator).set(1)
            self._breaker.labels(pool.engine, pool.pool_id).set(pool.breaker == "open")


_HAPPENED: Final[dict[type, Callable[[PoolTelemetry, Any], None]]] = {
    core.ReplicaReady: PoolTelemetry._ready,
    core.ReplicaUnready: PoolTelemetry._unready,
    core.ReplicaLost: PoolTelemetry._lost,
    ev.ReplicaGone: PoolTelemetry._gone,
}
_DECIDED: Final[dict[type, Callable[[PoolTelemetry, Any], None]]] = {
    ev.OrderReplica: PoolTelemetry._ordered,
    ev.LaunchEngine: PoolTelemetry._launched,
    ev.RetireReplica: PoolTelemetry._retired,
}
