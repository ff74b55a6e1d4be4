"""Metrics of pools: restarts and launches by kind, errors of GPUs counted once, gauges by device and by phase."""

from collections.abc import Callable
from typing import get_args

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from contracts.control import PoolHealth, PoolMetrics, ReplicaHealth, ReplicaPhase
from contracts.gpus import GpuCounts, GpuReading
from contracts.messages import EngineGauges
from contracts.pools import (
    FaultKind,
    LaunchEngine,
    NotePool,
    OrderReplica,
    PoolChange,
    ReplicaGone,
    ReplicaOrder,
    RetireReplica,
)
from contracts.scheduling import ReplicaLost, ReplicaReady, ReplicaUnready
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

    def order(self, replica_id: str = "pool-0", incarnation: int = 1) -> None:
        self.telemetry.decided(OrderReplica("set", ReplicaOrder(replica_id, incarnation, "pool", "m")))

    def launch(self, replica_id: str = "pool-0") -> None:
        self.telemetry.decided(LaunchEngine("set", replica_id, 2))

    def retire(self, replica_id: str = "pool-0") -> None:
        self.telemetry.decided(RetireReplica("set", replica_id, 1))

    def ready(self, replica: ReplicaInfo = REPLICA) -> None:
        self.telemetry.happened(ReplicaReady(replica))

    def unready(self, kind: FaultKind, replica_id: str = "pool-0") -> None:
        self.telemetry.happened(ReplicaUnready(replica_id, "because", kind))

    def lost(self, replica_id: str = "pool-0") -> None:
        self.telemetry.happened(ReplicaLost(replica_id, "its connection ended"))

    def gone(self, kind: FaultKind, incarnation: int = 1) -> None:
        self.telemetry.happened(ReplicaGone("pool-0", incarnation, kind, "because"))

    @property
    def outcomes(self) -> dict[str, float]:
        """Launches by how they ended."""
        return self.by("preload_outcomes_total", "outcome")

    @property
    def shown(self) -> dict[str, float]:
        """Memory in use by GPU."""
        return self.by("vram_used_bytes", "device")

    def scrape(self, *gpus: GpuReading, replica: ReplicaInfo = REPLICA, host_bytes: int | None = 4096) -> None:
        gauges = EngineGauges(replica.replica_id, 0.5, gpus, host_ram_used_bytes=host_bytes)
        self.telemetry.gauges(replica, gauges)

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
    assert page.outcomes == {}


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
    assert page.by("pool_restarts_total", "pool_id") == {}
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
    page.ready()
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
        (GpuCounts(ecc_corrected=4, ecc_uncorrected=3, xids=6), (9, 5, 10)),
    ],
)
def test_a_replica_that_was_made_anew_counts_on_top(anew: GpuCounts, both: tuple[float, ...]) -> None:
    page = Page()
    page.ready()
    page.count(GpuCounts(ecc_corrected=5, ecc_uncorrected=2, xids=4))
    for _ in range(2):
        page.count(anew)
    assert page.errors() == both


@pytest.mark.req("ORCH-3053", "OC-POOL-3030")
def test_another_actor_counts_from_zero_also_where_its_counts_do_not_tell() -> None:
    page = Page()
    for incarnation in (1, 2):
        page.order(incarnation=incarnation)
        page.ready()
        page.count(GpuCounts(ecc_corrected=5 * incarnation, ecc_uncorrected=2 * incarnation, xids=4 * incarnation))
        page.lost()  # its link alone: the same actor goes on
        page.ready()
        page.count(GpuCounts(ecc_corrected=5 * incarnation, ecc_uncorrected=2 * incarnation, xids=4 * incarnation + 1))
    assert page.errors() == (15, 6, 14)


@pytest.mark.req("OC-POOL-3030")
def test_replicas_are_counted_each_for_itself() -> None:
    page = Page()
    page.ready()
    page.ready(NEIGHBOUR)
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
    page.ready()
    page.scrape(*gpus)
    assert page.shown == {"GPU-a": 250, "GPU-b": 0, "GPU-c": 999}
    assert page.by("gpu_utilization", "device") == {"GPU-a": 37, "GPU-b": 0}
    assert page.value("vram_used_bytes", PLACED, device="GPU-a") == 250
    assert page.value("gpu_utilization", PLACED, device="GPU-a") == 37
    assert page.value("host_ram_used_bytes", PLACED) == 4096


GPU_A = GpuReading(0, "GPU-a", "Fake", 1000, 250, utilization_percent=37)
GPU_B = GpuReading(1, "GPU-b", "Fake", 1000, 500, utilization_percent=73)
GAUGES = ("vram_used_bytes", "gpu_utilization", "host_ram_used_bytes")


@pytest.mark.req("OC-POOL-3030")
def test_what_is_not_told_any_more_is_not_shown_any_more() -> None:
    """A GPU that is lost is in no reading; its last figures would say that it works."""
    page = Page()
    page.ready()
    page.scrape(GPU_A, GPU_B)
    page.scrape(GPU_B, host_bytes=None)
    assert page.shown == {"GPU-b": 500}
    assert page.by("gpu_utilization", "device") == {"GPU-b": 73}
    assert page.by("host_ram_used_bytes", "replica_id") == {}
    page.scrape(replace(GPU_A, vram_used_bytes=251), GPU_B)
    assert page.shown == {"GPU-a": 251, "GPU-b": 500}


@pytest.mark.req("OC-POOL-3030", "ORCH-3038")
@pytest.mark.parametrize(
    "down",
    [
        lambda page: page.unready("exit"),
        Page.lost,
        lambda page: page.gone("actor"),
        Page.launch,
        Page.retire,
        lambda page: page.order(incarnation=2),
    ],
    ids=["unready", "lost", "gone", "launched again", "retired", "ordered anew"],
)
def test_gauges_of_a_replica_go_with_it(down: Callable[[Page], None]) -> None:
    page = Page()
    page.order()
    for replica in (REPLICA, NEIGHBOUR):
        page.ready(replica)
        page.scrape(GPU_A, replica=replica)
    down(page)
    for name in GAUGES:
        assert list(page.by(name, "replica_id")) == ["pool-1"]
    page.scrape(GPU_A)  # it was on its way
    assert list(page.by("host_ram_used_bytes", "replica_id")) == ["pool-1"]
    page.ready()
    page.scrape(GPU_A)
    for name in GAUGES:
        assert sorted(page.by(name, "replica_id")) == ["pool-0", "pool-1"]


@pytest.mark.req("OC-POOL-3030", "ORCH-3032")
def test_an_engine_of_another_version_takes_the_place_of_the_one_before_it() -> None:
    page = Page()
    later = replace(REPLICA, engine_version="b2")
    page.ready()
    page.scrape(GPU_A)
    page.ready(later)
    page.scrape(GPU_A, replica=later)
    for name in GAUGES:
        assert list(page.by(name, "engine_version")) == ["b2"]


def test_nothing_is_kept_of_replicas_that_were_retired() -> None:
    page = Page()
    for number in range(5):
        replica = replace(REPLICA, replica_id=f"pool-{number}")
        page.order(replica.replica_id)
        page.launch(replica.replica_id)
        page.ready(replica)
        page.scrape(GPU_A, replica=replica)
        page.launch(replica.replica_id)
        page.retire(replica.replica_id)
    kept = page.telemetry
    assert (kept._orders, kept._launching, kept._counted, kept._shown) == ({}, {}, {}, {})


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
