"""Canary pools: their share of the sessions, whole sessions, and what happens when a side is down (OC-CORE-1013)."""

from typing import Any

import pytest

from contracts.policies import PoolPolicy
from contracts.scheduling import ReplicaLost, Start
from orchestrator.core.canaries import Canaries
from tests.unit.core.core_kit import Core, ended, of, one, replica, replica_set

POOLS = (PoolPolicy("pool-a"), PoolPolicy("pool-c", canary_percent=10), PoolPolicy("pool-d", canary_percent=25))


def core(**over: Any) -> Core:
    policy = replica_set(pools=(PoolPolicy("pool-a"), PoolPolicy("pool-c", canary_percent=50)), **over)
    return Core(policy, ready=(replica(slots=2), replica("c0", pool_id="pool-c")))


def placed(made: Core, task_id: str, session_id: str) -> str:
    return one(made.submit(task_id, session_id=session_id), Start).replica_id


@pytest.mark.req("OC-CORE-1013", "ORCH-3091")
def test_each_pool_serves_its_share_of_the_sessions() -> None:
    made = Core(
        replica_set(pools=POOLS),
        ready=(replica(slots=4), replica("c0", pool_id="pool-c", slots=4), replica("d0", pool_id="pool-d", slots=4)),
    )
    served = {"r0": 0, "c0": 0, "d0": 0}
    for n in range(600):
        replica_id = placed(made, f"t{n}", f"session-{n}")
        served[replica_id] += 1
        made.tell(ended(f"t{n}", 1, replica_id))
    assert abs(served["c0"] - 60) < 24
    assert abs(served["d0"] - 150) < 36
    assert sum(served.values()) == 600


@pytest.mark.req("OC-CORE-1013")
def test_a_session_stays_on_its_side() -> None:
    made = core()
    for turn in range(3):
        for session_id, replica_id in (("s2", "c0"), ("s1", "r0")):
            assert placed(made, f"{session_id}-{turn}", session_id) == replica_id
            made.tell(ended(f"{session_id}-{turn}", 1, replica_id))


@pytest.mark.req("OC-CORE-1013")
def test_a_canary_without_a_free_slot_leaves_its_sessions_to_the_others() -> None:
    made = core()
    assert placed(made, "a", "s2") == "c0"
    assert placed(made, "b", "s4") == "r0"


@pytest.mark.req("OC-CORE-1013")
def test_the_others_sessions_wait_rather_than_go_to_a_canary() -> None:
    made = core()
    for n in range(2):
        assert placed(made, f"a{n}", "s1") == "r0"
    assert not of(made.submit("waits", session_id="s1"), Start)
    assert one(made.tell(ended("a0")), Start).task_id == "waits"


@pytest.mark.req("OC-CORE-1013")
@pytest.mark.parametrize(("lost", "left"), [("r0", "c0"), ("c0", "r0")])
def test_one_side_serves_all_when_the_other_is_down(lost: str, left: str) -> None:
    made = core()
    made.tell(ReplicaLost(lost, "gone"))
    for session_id in ("s1", "s2"):
        assert placed(made, session_id, session_id) == left
        made.tell(ended(session_id, 1, left))


@pytest.mark.req("OC-CORE-1013")
def test_the_one_canary_that_is_left_serves_the_sessions_of_another() -> None:
    made = Core(replica_set(pools=POOLS), ready=(replica("d0", pool_id="pool-d", slots=100),))
    for n in range(100):
        assert placed(made, f"t{n}", f"session-{n}") == "d0"


@pytest.mark.req("OC-CORE-1013", "ORCH-3029", "ORCH-3004")
def test_a_slot_of_the_other_side_counts_neither_as_a_start_at_once_nor_as_a_place() -> None:
    made = core(capacity=1)
    for n in range(2):
        placed(made, f"a{n}", "s1")
    # c0 is free, but not for these.
    admit = made.submit("waits", session_id="s1")[0]
    assert (type(admit).__name__, getattr(admit, "predicted_start_ms", 0) >= 1) == ("Admit", True)
    assert type(made.submit("too-many", session_id="s1")[0]).__name__ == "Reject"


def test_without_canaries_there_is_one_index() -> None:
    canaries = Canaries((PoolPolicy("pool-a"), PoolPolicy("pool-b")))
    assert canaries.indexes == [canaries.main]
    assert {canaries.index_for(f"s{n}") for n in range(50)} == {canaries.main}
