"""Which replica: load, KV room and pressure, distance, masks, warm sessions, another node after a failure."""

from typing import Any

import pytest

from contracts.policies import PoolPolicy
from contracts.scheduling import Admit, RefuseReplica, Reject, ReplicaLost, ReplicaReady, ReplicaReported, Start
from contracts.tasks import ReplicaInfo
from orchestrator.core.placement import PRESSURE_STEP_PERMILLE
from tests.unit.core.core_kit import Core, ended, of, one, replica, replica_set


def core(*ready: ReplicaInfo, **over: Any) -> Core:
    return Core(replica_set(**over), ready=ready)


def start(made: Core, task_id: str, **over: Any) -> Start:
    return one(made.submit(task_id, **over), Start)


@pytest.mark.req("ORCH-3008", "ORCH-3091", "OC-CORE-1012")
def test_the_least_loaded_by_fraction_of_its_slots() -> None:
    made = core(replica("r0", slots=1), replica("r1", slots=4))
    assert [start(made, f"t{n}").replica_id for n in range(5)] == ["r0", "r1", "r1", "r1", "r1"]
    assert made.scheduler.task("t0", "acme") is not None
    made.tell(ended("t0", 1, "r0"))
    begun = start(made, "t5")
    assert (begun.replica_id, begun.busy, begun.slots, begun.placement) == ("r0", 0, 1, "least-loaded")
    assert begun.why == ("least-loaded: r0 with 0 of 1 slots taken; waited 0 ms, 600000 ms to the deadline")


@pytest.mark.req("ORCH-3091", "ORCH-3022")
def test_the_fraction_of_its_kv_counts_where_it_is_larger() -> None:
    # Two of eight slots hold two thirds of the KV.
    made = core(replica("r0", slots=8, kv_tokens=120), replica("r1", slots=2))
    assert start(made, "a", max_tokens=90).replica_id == "r0"
    assert start(made, "b").replica_id == "r1"
    assert start(made, "c").replica_id == "r1"


@pytest.mark.req("ORCH-3020", "ORCH-3091", "ORCH-3022")
def test_a_task_waits_for_room_in_the_kv_though_a_slot_is_free() -> None:
    made = core(replica("r0", slots=8, kv_tokens=100))
    start(made, "a", max_tokens=60)
    assert not of(made.submit("b", max_tokens=60), Start)
    assert made.state_of("b") == "queued"
    assert one(made.tell(ended("a")), Start).task_id == "b"


@pytest.mark.req("ORCH-3029", "ORCH-3004", "ORCH-3022")
def test_a_slot_without_room_in_the_kv_is_neither_a_start_at_once_nor_a_place() -> None:
    made = core(replica("r0", slots=8, kv_tokens=100), capacity=1)
    start(made, "a", max_tokens=60)
    admit = one(made.submit("b", max_tokens=60), Admit)
    assert admit.predicted_start_ms >= 1
    assert of(made.submit("too-many", max_tokens=60), Reject)


@pytest.mark.req("ORCH-3022")
def test_of_equally_loaded_ones_the_one_under_less_kv_pressure() -> None:
    made = core(replica("r0", slots=2), replica("r1", slots=2))
    made.tell(ReplicaReported("r0", PRESSURE_STEP_PERMILLE))
    assert start(made, "a").replica_id == "r1"
    made.tell(ended("a", 1, "r1"))
    # Small changes do not count, and nonsense is bounded.
    made.tell(ReplicaReported("r0", PRESSURE_STEP_PERMILLE - 1))
    assert start(made, "b").replica_id == "r0"
    made.tell(ReplicaReported("r0", 5_000))
    made.tell(ReplicaReported("r1", -3))
    made.tell(ReplicaReported("unknown", 1))
    made.tell(ended("b", 1, "r0"))
    assert start(made, "c").replica_id == "r1"


@pytest.mark.req("ORCH-3013")
def test_of_equals_the_near_one() -> None:
    made = core(replica("far", distance=2), replica("near", distance=1))
    assert start(made, "a").replica_id == "near"
    assert start(made, "b").replica_id == "far"


@pytest.mark.req("ORCH-3011", "OC-CORE-1011")
def test_a_replica_on_a_device_outside_the_mask_is_refused() -> None:
    made = core(pools=(PoolPolicy("pool-a", devices=("gpu0", "gpu1")),))
    assert not of(made.tell(ReplicaReady(replica("r0", devices=("gpu1",)))), RefuseReplica)
    refused = one(made.tell(ReplicaReady(replica("r1", devices=("gpu1", "gpu2")))), RefuseReplica)
    assert (refused.replica_id, refused.reason) == ("r1", "it runs on gpu2, the pool's mask is gpu0, gpu1")
    assert [start(made, "a").replica_id] == ["r0"]
    assert not of(made.submit("b"), Start)


def warm_core() -> Core:
    """A session's first turn was served by r1, which keeps its KV; both are idle again."""
    made = core(replica("r0", slots=2, keeps_kv=True), replica("r1", slots=2, keeps_kv=True))
    start(made, "other", session_id="x")
    assert start(made, "turn1", session_id="s").replica_id == "r1"
    made.tell(ended("turn1", 1, "r1", tokens_in=20))
    made.tell(ended("other", 1, "r0"))
    return made


@pytest.mark.req("ORCH-3009", "OC-CORE-1013")
def test_a_session_goes_where_its_kv_is() -> None:
    begun = start(warm_core(), "turn2", session_id="s")
    assert (begun.replica_id, begun.warm, begun.placement) == ("r1", True, "affinity")
    assert begun.why.startswith("affinity: r1 with 0 of 2 slots taken, session KV warm; ")


@pytest.mark.req("ORCH-3009", "OC-CORE-1013")
@pytest.mark.parametrize("over", [{"kv_hint": "cold"}, {"session_id": "new"}, {"tenant": "other"}])
def test_others_start_cold_on_the_least_loaded(over: dict[str, Any]) -> None:
    begun = start(warm_core(), "turn2", **{"session_id": "s"} | over)
    assert (begun.replica_id, begun.warm, begun.placement) == ("r0", False, "least-loaded")


@pytest.mark.req("ORCH-3009")
def test_a_full_or_lost_replica_does_not_hold_a_session_up() -> None:
    made = warm_core()
    # Both fill up, r1 to the brim.
    assert [start(made, f"fill{n}", session_id="s").replica_id for n in range(2)] == ["r1", "r1"]
    begun = start(made, "turn2", session_id="s")
    assert (begun.replica_id, begun.warm) == ("r0", False)
    made = warm_core()
    made.tell(ReplicaLost("r1", "gone"))
    begun = start(made, "turn2", session_id="s")
    assert (begun.replica_id, begun.warm) == ("r0", False)


@pytest.mark.req("ORCH-3008")
def test_a_failed_attempt_is_tried_again_on_another_node_if_there_is_one() -> None:
    made = core(replica("r0", node_id="n0", slots=2), replica("r1", node_id="n0"), replica("r2", node_id="n1"))
    start(made, "busy")
    assert start(made, "busy2").replica_id == "r1"
    assert start(made, "busy3").replica_id == "r2"
    made.tell(ended("busy3", 1, "r2"))
    made.tell(ended("busy2", 1, "r1"))
    assert start(made, "t").replica_id == "r1"
    again = one(made.tell(ended("t", 1, "r1", result="failed")), Start)
    assert (again.replica_id, again.attempt) == ("r2", 2)
    # Without another node it goes where there is room.
    made.tell(ReplicaLost("r1", "gone"))
    again = one(made.tell(ended("t", 2, "r2", result="failed")), Start)
    assert (again.replica_id, again.attempt) == ("r0", 3)
