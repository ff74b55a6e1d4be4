"""Replicas: pins, readiness, and what is refused."""

import pytest

from contracts.scheduling import RefuseReplica, ReplicaLoading, ReplicaLost, ReplicaReady, ReplicaUnready, Start
from tests.unit.core.core_kit import Core, ended, of, one, replica, replica_set, started


@pytest.mark.req("ORCH-3046")
@pytest.mark.parametrize(
    ("over", "named"),
    [
        ({"engine_version": "b2"}, "engine_version"),
        ({"model_digest": "sha256:bb"}, "model_digest"),
        ({"ctx": 200}, "ctx"),
    ],
)
def test_a_replica_unlike_the_first_is_refused(over: dict[str, object], named: str) -> None:
    core = Core(ready=(replica("r0"),))
    refusal = one(core.tell(ReplicaReady(replica("r1", **over))), RefuseReplica)
    assert refusal.replica_id == "r1"
    assert named in refusal.reason
    core.submit("t0")
    assert not of(core.submit("t1"), Start)


@pytest.mark.req("ORCH-3046")
@pytest.mark.parametrize("over", [{"engine": "vllm"}, {"sampler_profile_version": "v2"}, {"ctx": 99}, {"slots": 0}])
def test_a_replica_unlike_the_configuration_is_refused(over: dict[str, object]) -> None:
    core = Core()
    assert of(core.tell(ReplicaReady(replica(**over))), RefuseReplica)


@pytest.mark.req("ORCH-3046")
@pytest.mark.parametrize("event", [ReplicaLost("r0", "gone"), ReplicaUnready("r0", "crash")])
def test_the_pin_is_renewed_once_nothing_is_ready(event: ReplicaLost) -> None:
    core = Core(ready=(replica("r0"), replica("r1")))
    core.tell(event)
    assert of(core.tell(ReplicaReady(replica("r2", engine_version="b2"))), RefuseReplica)
    core.tell(ReplicaLost("r1", "gone"))
    assert not of(core.tell(ReplicaReady(replica("r2", engine_version="b2"))), RefuseReplica)


@pytest.mark.req("ORCH-3046")
def test_a_replica_that_comes_back_unlike_itself_is_checked_again() -> None:
    core = Core(ready=(replica("r0"), replica("r1")))
    assert of(core.tell(ReplicaReady(replica("r1", engine_version="b2"))), RefuseReplica)
    assert not core.tell(ReplicaReady(replica("r0")))


def test_a_replica_of_an_unknown_pool_is_refused() -> None:
    core = Core()
    assert one(core.tell(ReplicaLoading("r0", "nowhere")), RefuseReplica).replica_id == "r0"
    assert of(core.tell(ReplicaReady(replica(pool_id="nowhere"))), RefuseReplica)


@pytest.mark.req("ORCH-3010", "ORCH-3018")
def test_readiness_by_pool() -> None:
    core = Core(replica_set(pool_ids=("pool-a", "pool-b")))
    assert core.scheduler.readiness()["pool-a"].startswith("unavailable: ")
    core.tell(ReplicaLoading("r0", "pool-a"))
    core.tell(ReplicaReady(replica("r1", pool_id="pool-b")))
    assert core.scheduler.readiness() == {"pool-a": "loading", "pool-b": "ready"}
    core.tell(ReplicaLoading("r2", "pool-b"))
    core.tell(ReplicaUnready("r0", "engine exited with 1"))
    assert core.scheduler.readiness() == {"pool-a": "unavailable: engine exited with 1", "pool-b": "ready"}
    core.tell(ReplicaLost("r1", "gone"))
    assert core.scheduler.readiness()["pool-b"] == "loading"


@pytest.mark.req("ORCH-3010")
def test_waiting_tasks_outlive_an_outage() -> None:
    core = Core(ready=(replica(),))
    core.submit("t")
    core.submit("w")
    core.tell(ReplicaLost("r0", "gone"))
    status = core.scheduler.status(core.now_ms, "t", "acme")
    assert status is not None
    # The load guess of 10 s, since nobody runs and nobody is ahead.
    assert (status.state, status.queue_position, status.predicted_start_ms) == ("queued", 0, 10_000)
    assert one(core.tell(ReplicaReady(replica("r9"))), Start).task_id == "t"
    assert started(core.tell(ended("t", 2, "r9"))) == [("w", 1, "r9")]
