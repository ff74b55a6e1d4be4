"""Metrics of pools: restarts and launches by kind, errors of GPUs counted once, gauges by device and by phase."""

from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from contracts.control import PoolHealth, PoolMetrics, ReplicaHealth, ReplicaPhase
from contracts.gpus import GpuCounts, GpuReading
from contracts.messages import EngineGauges
from contracts.pools import FaultKind, NotePool, PoolChange
from contracts.tasks import ReplicaInfo
from orchestrator.cluster.pool_telemetry import PoolTelemetry

REPLICA = ReplicaInfo("pool-0", "pool", "llamacpp", "b1", "sha256:0", 2048, 2, "v1", "gpu", "node")
NEIGHBOUR = ReplicaInfo("pool-1", "pool", "llamacpp", "b1", "sha256:0", 2048, 2, "v1", "gpu", "node")
POOL = {"engine": "llamacpp", "pool_id": "pool"}
PLACED = POOL | {"engine_version": "b1", "replica_id": "pool-0"}
NO_METRICS = PoolMetrics(0, 0, 0, 0, 0, 0)


class Page:
    """The metrics page of one pool, and what is told to it."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.telemetry = PoolTelemetry({"pool": "llamacpp"}, self._registry)

    def value(self, name: str, labels: dict[str, str] = POOL, **more: str) -> float | None:
        return self._registry.get_sample_value(name, labels | more)

    def by(self, name: str, label: str) -> dict[str, float]:
        """All samples of a metric by one of its labels, which must tell them apart."""
        samples = [each for family in self._registry.collect() for each in family.samples if each.name == name]
        found = {each.labels[label]: each.value for each in samples}
        assert len(found) == len(samples), samples
        return found

    def restart(self, *kinds: FaultKind, pool_id: str = "pool") -> None:
        for kind in kinds:
            self.note("restart", kind, pool_id)

    def note(self, change: PoolChange, kind: FaultKind | None = None, pool_id: str = "pool") -> None:
        self.telemetry.noted(NotePool("set", pool_id, change, "because", f"{pool_id}-0", kind))

    def count(self, counts: GpuCounts, replica: ReplicaInfo = REPLICA) -> None:
        self.telemetry.gauges(replica, EngineGauges(replica.replica_id, None, gpu_counts=counts))

    def errors(self, replica_id: str = "pool-0") -> tuple[float | None, ...]:
        """Corrected and uncorrected memory errors, and XIDs."""
        kinds = ("corrected", "uncorrected")
        ecc = [self.value("ecc_errors_total", replica_id=replica_id, kind=kind) for kind in kinds]
        return *ecc, self.value("gpu_xid_errors_total", replica_id=replica_id)


# ------------------------------------------------------------------------- decisions


@pytest.mark.req("ORCH-3053", "OC-POOL-3030")
def test_restarts_are_counted_by_the_fault_that_they_are_for() -> None:
    page = Page()
    page.restart("exit", "ecc", "exit", "xid")
    assert page.by("pool_restarts_total", "reason") == {"exit": 2, "ecc": 1, "xid": 1}
    assert page.value("pool_changes_total", change="restart") == 4


@pytest.mark.req("OC-POOL-3030")
def test_launches_are_counted_by_their_end() -> None:
    page = Page()
    page.restart("headroom", "model", "headroom")
    page.telemetry.ready(REPLICA)
    assert page.by("preload_outcomes_total", "outcome") == {"headroom": 2, "model": 1, "ready": 1}
    assert page.value("preload_outcomes_total", outcome="ready") == 1


@pytest.mark.req("ORCH-3039", "OC-POOL-3030")
def test_memory_that_ran_out_is_counted_by_whose_it_was() -> None:
    page = Page()
    page.restart("vram_oom", "host_oom", "vram_oom", "headroom", "exit")
    assert page.by("oom_events_total", "kind") == {"vram": 2, "host": 1}


@pytest.mark.req("ORCH-3053", "OC-POOL-3030")
def test_driver_errors_and_lost_gpus_are_counted_apart_from_other_errors_of_gpus() -> None:
    page = Page()
    page.restart("ecc", "xid", "exit")
    assert page.value("driver_resets_total") is None
    page.restart("driver", "gpu_lost")
    assert page.value("driver_resets_total") == 2


@pytest.mark.req("ORCH-3053")
def test_other_decisions_about_a_fault_are_no_restarts() -> None:
    """One fault makes several decisions: it counts once, with the restart."""
    page = Page()
    page.note("capacity_reduced", "vram_oom")
    page.note("breaker_open", "driver")
    page.note("lease_lapsed", "lease")
    page.note("scaled_up")
    for name in ("pool_restarts_total", "preload_outcomes_total"):
        assert page.by(name, "pool_id") == {}
    assert (page.by("oom_events_total", "kind"), page.value("driver_resets_total")) == ({}, None)
    changes = ("capacity_reduced", "breaker_open", "lease_lapsed", "scaled_up")
    assert page.by("pool_changes_total", "change") == dict.fromkeys(changes, 1)


def test_a_pool_that_is_not_known_is_counted_all_the_same() -> None:
    page = Page()
    page.restart("exit", pool_id="other")
    assert page.value("pool_restarts_total", engine="unknown", pool_id="other", reason="exit") == 1


# --------------------------------------------------------------------- errors of GPUs


@pytest.mark.req("ORCH-3053", "OC-POOL-3030")
def test_counts_that_are_told_again_count_once() -> None:
    page = Page()
    for _ in range(2):
        page.count(GpuCounts(ecc_corrected=5, ecc_uncorrected=1, xids=2))
    assert page.errors() == (5, 1, 2)
    page.count(GpuCounts(ecc_corrected=7, ecc_uncorrected=1, xids=3))
    assert page.errors() == (7, 1, 3)


@pytest.mark.req("ORCH-3053", "OC-POOL-3030")
@pytest.mark.parametrize(
    ("anew", "both"),
    [
        (GpuCounts(), (5, 2, 4)),
        (GpuCounts(ecc_corrected=1, ecc_uncorrected=1, xids=1), (6, 3, 5)),
        # More of one kind than the last one had; less of another gives it away.
        (GpuCounts(ecc_corrected=9, ecc_uncorrected=0, xids=6), (14, 2, 10)),
        (GpuCounts(ecc_corrected=9, ecc_uncorrected=3, xids=1), (14, 5, 5)),
    ],
)
def test_a_replica_that_was_made_anew_counts_on_top(anew: GpuCounts, both: tuple[float, ...]) -> None:
    page = Page()
    page.count(GpuCounts(ecc_corrected=5, ecc_uncorrected=2, xids=4))
    for _ in range(2):
        page.count(anew)
    assert page.errors() == both


@pytest.mark.req("OC-POOL-3030")
def test_replicas_are_counted_each_for_itself() -> None:
    page = Page()
    page.count(GpuCounts(xids=4))
    page.count(GpuCounts(xids=1), NEIGHBOUR)
    page.count(GpuCounts(xids=5))
    page.count(GpuCounts(xids=2), NEIGHBOUR)
    assert (page.errors()[-1], page.errors("pool-1")[-1]) == (5, 2)


# ---------------------------------------------------------------------------- gauges


@pytest.mark.req("OC-POOL-3030", "ORCH-3028")
def test_each_gpu_is_shown_by_its_uuid_and_what_the_driver_does_not_tell_is_left_out() -> None:
    page = Page()
    gpus = (
        GpuReading(0, "GPU-a", "Fake", 1000, 250, utilization_percent=37),
        GpuReading(1, "GPU-b", "Fake", 1000, 0, utilization_percent=0),
        GpuReading(2, "GPU-c", "Fake", 1000, 999),
    )
    page.telemetry.gauges(REPLICA, EngineGauges("pool-0", 0.5, gpus, host_ram_used_bytes=4096))
    assert page.by("vram_used_bytes", "device") == {"GPU-a": 250, "GPU-b": 0, "GPU-c": 999}
    assert page.by("gpu_utilization", "device") == {"GPU-a": 37, "GPU-b": 0}
    assert page.value("vram_used_bytes", PLACED, device="GPU-a") == 250
    assert page.value("gpu_utilization", PLACED, device="GPU-a") == 37
    assert page.value("host_ram_used_bytes", PLACED) == 4096
    page.telemetry.gauges(REPLICA, EngineGauges("pool-0", 0.5, gpus[1:2]))
    assert page.value("host_ram_used_bytes", PLACED) == 4096


def health(*phases: ReplicaPhase, breaker: str = "closed") -> PoolHealth:
    replicas = [ReplicaHealth(f"pool-{index}", phase, "m", 1, 0) for index, phase in enumerate(phases)]
    return PoolHealth(
        pool_id="pool",
        engine="llamacpp",
        accelerator="cpu-dev",
        model_ref="m",
        live=True,
        ready="ready" in phases,
        draining=False,
        restarts=0,
        metrics=NO_METRICS,
        replicas=replicas,
        breaker=breaker,  # type: ignore[arg-type]
    )


@pytest.mark.req("OC-POOL-3030")
def test_every_phase_is_shown_also_those_that_no_replica_is_in() -> None:
    page = Page()
    none = dict.fromkeys(get_args(ReplicaPhase), 0)
    page.telemetry.render([health("ready", "loading", "ready")])
    assert page.by("pool_replicas", "state") == none | {"ready": 2, "loading": 1}
    page.telemetry.render([health("waiting")])
    assert page.by("pool_replicas", "state") == none | {"waiting": 1}
    page.telemetry.render([health()])
    assert page.by("pool_replicas", "state") == none
    assert page.value("pool_accelerator", accelerator="cpu-dev") == 1


@pytest.mark.req("ORCH-3053", "OC-POOL-3030")
def test_the_breaker_is_shown_open_and_closed() -> None:
    page = Page()
    shown = []
    for breaker in ("closed", "open", "closed"):
        page.telemetry.render([health("waiting", breaker=breaker)])
        shown.append(page.value("launch_breaker_open"))
    assert shown == [0, 1, 0]
