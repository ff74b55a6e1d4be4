"""Managed replicas: ordered, registered, launched, drained and retired."""

import pytest

from contracts.pools import (
    LaunchEngine,
    LeaseRenewed,
    OrderReplica,
    ReplicaFaulted,
    ReplicaGone,
    ReplicaPlaced,
    RetireReplica,
)
from contracts.scheduling import (
    AnyCommand,
    RefuseReplica,
    ReplicaLoading,
    ReplicaLost,
    ReplicaReady,
    ReplicaUnready,
    Start,
    Stop,
)
from orchestrator.core.pools import members
from tests.unit.core.core_kit import MS, Core, ended, of, one, replica, replica_set, started
from tests.unit.core.pool_kit import Fleet, changes, pool


@pytest.mark.req("ORCH-3002", "ORCH-3010")
def test_nothing_is_ordered_before_nodes_are_known() -> None:
    core = Core(replica_set(pools=(pool(),)))
    assert core.tell(ReplicaLoading("pool-a-0", "pool-a", 1)) == [
        RefuseReplica("", "pool-a-0", "pool pool-a has not ordered a replica pool-a-0")
    ]
    fleet = Fleet(pool(replicas=2))
    assert list(fleet.orders) == ["pool-a-0", "pool-a-1"]
    assert {order.incarnation for order in fleet.orders.values()} == {1}
    assert {order.model_ref for order in fleet.orders.values()} == {"small"}
    assert fleet.scheduler.orders() == tuple(fleet.orders.values())


@pytest.mark.req("ORCH-3002", "ORCH-3010")
def test_a_replica_is_launched_when_it_registers_and_serves_when_it_is_ready() -> None:
    fleet = Fleet(pool(replicas=1, slots=4))
    assert one(fleet.come("pool-a-0"), LaunchEngine) == LaunchEngine("set-a", "pool-a-0", 4)
    assert fleet.scheduler.readiness() == {"pool-a": "loading"}
    # The launch is confirmed: that is no second registration.
    assert not of(fleet.come("pool-a-0"), LaunchEngine)
    fleet.ready("pool-a-0")
    assert started(fleet.submit("t")) == [("t", 1, "pool-a-0")]


@pytest.mark.parametrize(
    ("event", "named"),
    [
        (ReplicaLoading("pool-a-7", "pool-a", 1), "has not ordered"),
        (ReplicaLoading("pool-a-0", "pool-a", 2), "incarnation 2"),
        (ReplicaLoading("pool-a-0", "pool-a", 0), "incarnation 0"),
        (ReplicaLoading("pool-a-0", "elsewhere", 1), "was ordered by pool pool-a"),
        (ReplicaReady(replica("pool-a-7")), "has not ordered"),
        (ReplicaReady(replica("pool-a-0")), "register"),
    ],
)
@pytest.mark.req("ORCH-3010")
def test_whoever_was_not_ordered_is_refused_and_not_registered(event: ReplicaLoading, named: str) -> None:
    fleet = Fleet(pool(replicas=1))
    refusal = one(fleet.tell(event), RefuseReplica)
    assert named in refusal.reason
    assert not fleet.scheduler.state.replicas
    fleet.up("pool-a-0")
    assert fleet.home_ready() == ["pool-a-0"]


def test_reports_of_another_incarnation_are_dropped() -> None:
    fleet = Fleet(pool(replicas=1))
    fleet.up("pool-a-0")
    assert not fleet.tell(ReplicaGone("pool-a-0", 2, "actor", "died"))
    assert not fleet.tell(ReplicaGone("nobody", 1, "actor", "died"))
    assert not fleet.tell(ReplicaPlaced("pool-a-0", 9, "n9"))
    assert not fleet.tell(LeaseRenewed("nobody"))
    assert not fleet.tell(ReplicaFaulted("nobody", "xid", "31"))
    assert fleet.home_ready() == ["pool-a-0"]
    for event in (ReplicaLost("nobody", "gone"), ReplicaUnready("nobody", "down")):
        assert not fleet.tell(event)


@pytest.mark.req("ORCH-3018")
def test_a_link_that_was_cut_is_taken_up_again_and_the_engine_launched_anew() -> None:
    fleet = Fleet(pool(replicas=1))
    fleet.up("pool-a-0")
    fleet.lose("pool-a-0")
    fleet.pass_ms(200)
    assert not of(fleet.come("pool-a-0"), LaunchEngine)
    assert one(fleet.pass_ms(300), LaunchEngine).replica_id == "pool-a-0"
    fleet.ready("pool-a-0")
    assert fleet.orders["pool-a-0"].incarnation == 1
    assert fleet.home_ready() == ["pool-a-0"]


@pytest.mark.req("ORCH-3018")
def test_an_actor_that_does_not_come_back_is_made_anew() -> None:
    fleet = Fleet(pool(replicas=1))
    fleet.up("pool-a-0")
    fleet.lose("pool-a-0")
    assert not fleet.tell(ReplicaGone("pool-a-0", 1, "actor", "killed"))
    fault = fleet.member("pool-a-0").fault
    assert fault is not None
    assert (fault.kind, fault.reason) == ("actor", "killed")
    assert fleet.member("pool-a-0").restarts == 1
    # Its order does not stand any more, so that a manager that connects ends what is left of it.
    assert fleet.scheduler.orders() == ()
    assert one(fleet.pass_ms(500), OrderReplica).order.incarnation == 2
    fleet.up("pool-a-0")
    assert fleet.home_ready() == ["pool-a-0"]


def test_an_engine_that_loads_by_itself_counts_as_failed() -> None:
    fleet = Fleet(pool(replicas=1))
    fleet.up("pool-a-0")
    fleet.submit("t")
    assert ("restart", "pool-a-0") in changes(fleet.come("pool-a-0"))
    assert fleet.state_of("t") == "queued"
    assert one(fleet.pass_ms(500), LaunchEngine).replica_id == "pool-a-0"
    assert started(fleet.ready("pool-a-0")) == [("t", 2, "pool-a-0")]


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
def test_two_replicas_never_share_a_gpu() -> None:
    fleet = Fleet(pool(replicas=2))
    fleet.come("pool-a-0")
    fleet.come("pool-a-1")
    fleet.ready("pool-a-0", gpu_uuids=("GPU-1", "GPU-2"))
    refusal = one(fleet.ready("pool-a-1", gpu_uuids=("GPU-2", "GPU-3")), RefuseReplica)
    assert "pool-a-1 runs on GPU GPU-2, which pool-a-0 holds" in refusal.reason
    fault = fleet.member("pool-a-1").fault
    assert fault is not None
    assert fault.kind == "refused"
    # Tried again with another actor: this one is not wanted any more.
    assert "incarnation 1" in one(fleet.come("pool-a-1"), RefuseReplica).reason
    assert one(fleet.pass_ms(500), OrderReplica).order.incarnation == 2
    fleet.come("pool-a-1")
    assert not of(fleet.ready("pool-a-1", gpu_uuids=("GPU-3",)), RefuseReplica)


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
def test_replicas_that_nobody_ordered_never_share_a_gpu_either() -> None:
    core = Core(ready=(replica("r0", gpu_uuids=("GPU-1",)),))
    refusal = one(core.tell(ReplicaReady(replica("r1", gpu_uuids=("GPU-1",)))), RefuseReplica)
    assert "r0" in refusal.reason


# ------------------------------------------------------------------ drain


def drain(fleet: Fleet, replica_id: str, duration_ms: int, *, relaunch: bool = False) -> list[AnyCommand]:
    """Its pool wants one replica less, or the same with a new engine."""
    state, member = fleet.scheduler.state, fleet.member(replica_id)

    def change() -> None:
        if member.drain_until_ns is None and not relaunch:
            member.pool.desired -= 1
        members.drain(state, member, (fleet.now_ms + duration_ms) * MS, relaunch=relaunch)

    return fleet.during(change)


@pytest.mark.req("ORCH-3031")
def test_a_replica_that_drains_finishes_its_work_and_takes_none() -> None:
    fleet = Fleet(pool(replicas=2, smallest=0, largest=2))
    fleet.up("pool-a-0", "pool-a-1")
    fleet.submit("t0")
    drain(fleet, "pool-a-0", 5_000)
    assert started(fleet.submit("t1")) == [("t1", 1, "pool-a-1")]
    assert not of(fleet.submit("t2"), Start)
    commands = fleet.tell(ended("t0", replica_id="pool-a-0"))
    assert one(commands, RetireReplica) == RetireReplica("set-a", "pool-a-0", 1)
    assert changes(commands) == [("retired", "pool-a-0")]
    assert fleet.members == ["pool-a-1"]
    assert fleet.state_of("t0") == "finished"
    # What the retired one still says is not about anything.
    assert not fleet.tell(ReplicaLost("pool-a-0", "ended"))


@pytest.mark.req("ORCH-3031")
def test_at_its_deadline_the_rest_is_stopped_and_waited_for_briefly() -> None:
    fleet = Fleet(pool(replicas=1, smallest=0))
    fleet.up("pool-a-0")
    fleet.submit("t0")
    drain(fleet, "pool-a-0", 700)
    assert one(fleet.pass_ms(700), Stop).reason == "drain"
    assert fleet.members == ["pool-a-0"]
    # Nothing answers: over all the same, a moment later. The task waits again, and brings a replica.
    assert one(fleet.pass_ms(3_000), RetireReplica).replica_id == "pool-a-0"
    assert fleet.state_of("t0") == "queued"
    assert fleet.members == ["pool-a-1"]
    fleet.up("pool-a-1")
    assert fleet.state_of("t0") == "running"


def test_the_earlier_deadline_and_the_retirement_win() -> None:
    fleet = Fleet(pool(replicas=1, smallest=0))
    fleet.up("pool-a-0")
    fleet.submit("t0")
    member = fleet.member("pool-a-0")
    drain(fleet, "pool-a-0", 9_000, relaunch=True)
    member.pool.desired -= 1
    drain(fleet, "pool-a-0", 700)
    drain(fleet, "pool-a-0", 5_000, relaunch=True)
    assert member.drain_until_ns == (fleet.now_ms + 700) * MS
    assert not member.relaunch


@pytest.mark.req("ORCH-3018")
def test_what_fails_while_it_drains_is_retired() -> None:
    fleet = Fleet(pool(replicas=1, smallest=0))
    fleet.up("pool-a-0")
    fleet.submit("t0")
    drain(fleet, "pool-a-0", 5_000)
    assert of(fleet.fail("pool-a-0"), RetireReplica)
    # What ran on it goes on elsewhere: it brings another replica.
    assert fleet.members == ["pool-a-1"]
    fleet.up("pool-a-1")
    assert fleet.state_of("t0") == "running"


# ------------------------------------------------------------------ how many


@pytest.mark.req("ORCH-3018")
def test_surplus_replicas_go_those_without_work_first() -> None:
    fleet = Fleet(pool(replicas=4, smallest=1, largest=4))
    fleet.up("pool-a-0", "pool-a-1", "pool-a-2")
    fleet.submit("t0")
    own = fleet.pool()

    def resize() -> None:
        members.reconcile(fleet.scheduler.state, own)

    for desired, left in ((3, ["pool-a-0", "pool-a-1", "pool-a-2"]), (2, ["pool-a-0", "pool-a-1"]), (1, ["pool-a-0"])):
        own.desired = desired
        fleet.during(resize)
        assert fleet.members == left
    own.desired = 3
    fleet.during(resize)
    assert fleet.members == ["pool-a-0", "pool-a-4", "pool-a-5"], "no id comes twice"


def test_a_drained_pool_is_left_as_it_is() -> None:
    fleet = Fleet(pool(replicas=1, smallest=0))
    state, own = fleet.scheduler.state, fleet.pool()

    def drained() -> None:
        members.retire(state, fleet.member("pool-a-0"), "drained")
        own.drained = True
        members.reconcile(state, own)

    assert changes(fleet.during(drained)) == [("retired", "pool-a-0")]
    assert fleet.members == []
