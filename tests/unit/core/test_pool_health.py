"""What operators read of pools, replica sets and engines."""

import msgspec
import pytest

from contracts.control import SloStatus
from contracts.policies import PreemptionPolicy, RatePolicy
from contracts.pools import NodeInfo, NodesSeen
from contracts.scheduling import ReplicaReady, ReplicaUnready
from orchestrator.core.pools import health
from orchestrator.core.pools.capabilities import capabilities
from tests.unit.core.core_kit import MS, Core, queue, replica, replica_set
from tests.unit.core.fleet_kit import Fleet, managed, pool


@pytest.mark.req("ORCH-2103", "OC-CTRL-2001", "ORCH-1101")
def test_a_pool_that_serves_shows_its_replicas_slots_and_queue() -> None:
    fleet = Fleet(managed(pool(replicas=2, slots=2)))
    fleet.service_ms = None
    for n in range(5):
        fleet.submit(f"t{n}")
    seen = fleet.health()
    assert (seen.pool_id, seen.engine, seen.accelerator, seen.model_ref) == ("pool-a", "llamacpp", "cpu-dev", "small")
    assert (seen.live, seen.ready, seen.draining, seen.drained, seen.breaker) == (True, True, False, False, "closed")
    metrics = seen.metrics
    assert (metrics.replicas_desired, metrics.replicas_ready, metrics.slots_total, metrics.slots_free) == (2, 2, 4, 0)
    assert metrics.queue_depth == 1
    assert metrics.predicted_wait_ms > 0
    first = seen.replicas[0]
    assert (first.replica_id, first.phase, first.node_id, first.incarnation) == ("pool-a-0", "ready", "n0", 1)
    assert seen.last_error is None
    assert msgspec.json.decode(msgspec.json.encode(seen))["pool_id"] == "pool-a"


@pytest.mark.req("ORCH-2103", "OC-POOL-3003")
def test_a_failed_replica_shows_what_went_wrong_and_when_it_is_tried_again() -> None:
    fleet = Fleet()
    fleet.stuck.append("small")
    fleet.tell(ReplicaUnready("pool-a-0", "CUDA error 719", "driver", ("ggml_cuda: unspecified launch failure",)))
    fleet.core.now_ms += 200
    seen = fleet.health()
    assert (seen.ready, seen.restarts) == (False, 1)
    (only,) = seen.replicas
    assert (only.phase, only.restarts, only.retry_in_ms) == ("waiting", 1, 300)
    assert only.last_error == seen.last_error
    error = seen.last_error
    assert error is not None
    assert (error.kind, error.message, error.replica_id) == ("driver", "CUDA error 719", "pool-a-0")
    assert (error.ms_ago, error.stderr) == (200, ["ggml_cuda: unspecified launch failure"])
    assert fleet.core.scheduler.readiness() == {"pool-a": "unavailable: CUDA error 719"}


@pytest.mark.req("ORCH-2103", "OC-POOL-3003", "ORCH-3011")
def test_a_replica_without_a_place_says_what_is_missing() -> None:
    fleet = Fleet(managed(pool(devices=("1",), accelerator="gpu")), start=False)
    assert not fleet.health().live
    fleet.tell(NodesSeen((NodeInfo("n0", gpus=1),)))
    seen = fleet.health()
    assert seen.live
    assert seen.replicas[0].phase == "pending"
    assert seen.last_error is not None
    assert seen.last_error.kind == "unplaced"
    assert "node n0 has no GPU 1" in seen.last_error.message
    assert "node n0 has no GPU 1" in fleet.core.scheduler.readiness()["pool-a"]
    fleet.tell(NodesSeen((NodeInfo("n1", gpus=2, zone="west"),)))
    fleet.pass_ms(fleet.load_ms)
    (only,) = fleet.health().replicas
    assert (only.phase, only.node_id, only.zone, only.devices, only.gpu_uuids) == (
        "ready",
        "n1",
        "west",
        [1],
        ["GPU-n1-1"],
    )


@pytest.mark.req("ORCH-3018", "ORCH-3029", "ORCH-2103", "OC-POOL-3003")
def test_a_pool_at_zero_that_no_node_has_room_for_takes_tasks_and_says_what_it_waits_for() -> None:
    fleet = Fleet(managed(pool(least=0, devices=("1",), accelerator="gpu"), on_time_percent_min=50))
    assert fleet.core.scheduler.readiness() == {"pool-a": "ready"}
    fleet.submit("first", deadline_ms=120_000)
    assert fleet.phases() == {"pool-a-0": "pending"}
    for n in range(3):
        fleet.pass_ms(20_000)
        fleet.submit(f"t{n}", deadline_ms=120_000)
    load_ms = fleet.sets()["small"].predictor.load_ns // MS
    assert not fleet.refusals
    assert all(admit.predicted_start_ms >= load_ms for admit in fleet.admitted.values())
    status = fleet.core.scheduler.status(fleet.core.now_ms * MS, "first", "acme")
    assert status is not None
    assert status.predicted_start_ms is not None
    assert status.predicted_start_ms >= load_ms, "its node may come at any time, and then it loads"
    why = "pool pool-a needs GPU 1 of one node: node n0 has no GPU 1, only 0 in all"
    assert fleet.core.scheduler.readiness() == {"pool-a": f"unavailable: {why}"}
    seen = fleet.health()
    assert (seen.live, seen.ready) == (True, False)
    assert seen.last_error is not None
    assert (seen.last_error.kind, seen.last_error.message) == ("unplaced", why)
    assert seen.metrics.predicted_wait_ms >= load_ms
    # The autoscaler brings a node.
    fleet.tell(NodesSeen((NodeInfo("n0"), NodeInfo("n1", gpus=2))))
    assert fleet.core.scheduler.readiness() == {"pool-a": "ready"}
    fleet.pass_ms(fleet.load_ms + 500)
    assert {outcome.state for outcome in fleet.outcomes.values()} == {"finished"}
    assert len(fleet.outcomes) == 4


@pytest.mark.req("ORCH-2103")
def test_reading_changes_nothing() -> None:
    fleet = Fleet()
    fleet.submit("t")
    before = fleet.core.scheduler.state.now_ns
    assert fleet.health() == fleet.health()
    assert fleet.core.scheduler.state.now_ns == before
    assert health.pool_health(fleet.core.scheduler.state, before, "pool-z") is None


@pytest.mark.req("ORCH-2103")
def test_a_pool_that_nobody_orders_shows_who_registered() -> None:
    core = Core(ready=(replica("r0", slots=3, zone="east"),))
    state = core.scheduler.state
    seen = health.pool_health(state, core.now_ms * MS, "pool-a")
    assert seen is not None
    assert (seen.ready, seen.accelerator, seen.metrics.slots_free) == (True, "cpu-dev", 3)
    assert [(each.replica_id, each.phase, each.zone) for each in seen.replicas] == [("r0", "ready", "east")]
    core.tell(ReplicaUnready("r0", "it crashed"))
    seen = health.pool_health(state, core.now_ms * MS, "pool-a")
    assert seen is not None
    assert seen.last_error is None
    assert seen.replicas[0].last_error is not None
    assert seen.replicas[0].last_error.message == "it crashed"


@pytest.mark.req("ORCH-2104", "OC-CTRL-2004")
def test_replica_sets_show_load_objectives_and_who_serves() -> None:
    classes = (queue("interactive", slo_first_token_ms=900), queue("batch"))
    fleet = Fleet(managed(pool(slots=4), queues=classes))
    fleet.service_ms = None
    fleet.submit("t")
    (seen,) = health.replica_sets(fleet.core.scheduler.state, fleet.core.now_ms * MS)
    assert (seen.id, seen.engine, seen.pools, seen.model_refs) == (
        "llamacpp/small/-/100/v1",
        "llamacpp",
        ["pool-a"],
        ["small"],
    )
    assert (seen.load, seen.slots_total, seen.slots_free, seen.replicas_ready) == (0.25, 4, 3, 1)
    assert seen.slo == {"interactive": SloStatus(900), "batch": SloStatus(None)}
    assert (seen.accelerator, seen.engine_version, seen.model_digest) == ("cpu-dev", "b1", "sha256:small")
    fleet.reload("other")
    fleet.pass_ms(fleet.load_ms)
    states = health.replica_sets(fleet.core.scheduler.state, fleet.core.now_ms * MS)
    assert [(each.id, each.model_refs) for each in states] == [
        ("llamacpp/small/-/100/v1", ["small"]),
        ("llamacpp/other/-/100/v1", ["other", "small"]),
    ]
    assert states[1].load == 0.0


@pytest.mark.req("ORCH-2104")
def test_a_set_without_replicas_has_no_load_and_no_versions() -> None:
    (seen,) = health.replica_sets(Core().scheduler.state, 0)
    assert (seen.load, seen.slots_total, seen.engine_version, seen.accelerator) == (0.0, 0, None, "gpu")


@pytest.mark.req("ORCH-3095", "OC-CTRL-2060", "ORCH-1101")
def test_capabilities_tell_what_an_engine_serves() -> None:
    classes = (queue("interactive", rate=RatePolicy(5.0, 10)), queue("batch"))
    fleet = Fleet(
        managed(pool(replicas=2, least=0), queues=classes, preemption=PreemptionPolicy("hard"), on_time_percent_min=50),
        default_client=RatePolicy(100.0, 200),
    )
    fleet.submit("t")
    fleet.pass_ms(fleet.load_ms)
    (seen,) = capabilities(fleet.core.scheduler.state)
    assert (seen.engine, seen.ctx_max, seen.supported_workloads) == ("llamacpp", 100, ["completion"])
    assert (seen.models, seen.accelerators, seen.engine_versions) == (["small"], ["cpu-dev"], ["b1"])
    assert (seen.priorities, seen.sampler_profile_versions) == (["interactive", "batch"], ["v1"])
    assert [(limit.rps, limit.priority) for limit in seen.rate_limits] == [(5.0, "interactive"), (100.0, None)]
    for feature in ("strict_determinism", "interruptible_decode", "hard_preemption", "canary", "scale_to_zero"):
        assert feature in seen.features
    assert "session_kv" not in seen.features


@pytest.mark.req("ORCH-3095")
def test_what_no_replica_can_do_is_not_told() -> None:
    core = Core(replica_set())
    (seen,) = capabilities(core.scheduler.state)
    assert seen.features == ["strict_determinism", "one_call_stream", "last_event_id"]
    assert (seen.accelerators, seen.engine_versions) == ([], [])
    core.tell(ReplicaReady(replica(keeps_kv=True)))
    (seen,) = capabilities(core.scheduler.state)
    assert "session_kv" in seen.features
    assert seen.accelerators == ["cpu-dev"]
