"""Leases: a replica that falls silent is sent nothing more, and then replaced."""

import pytest

from contracts.policies import LeasePolicy, ScalingPolicy
from contracts.pools import DrainRequested, LeaseRenewed, OrderReplica, ReplicaFaulted, RetireReplica
from contracts.scheduling import RefuseReplica, ReplicaLoading, Start
from orchestrator.core.pools import members, restarts
from tests.unit.core.core_kit import MS, ended, of, one, started
from tests.unit.core.pool_kit import Fleet, changes, pool

LEASE = LeasePolicy(2_500, 15_000)


def silent(ready: int = 1) -> Fleet:
    fleet = Fleet(pool(replicas=ready), lease=LEASE, over={"idle_timeout_ms": 60_000})
    for number in range(ready):
        fleet.up(f"pool-a-{number}")
    return fleet


@pytest.mark.req("ORCH-3010", "ORCH-3018")
def test_a_silent_replica_is_sent_nothing_until_it_is_heard_of() -> None:
    fleet = silent()
    assert not changes(fleet.pass_ms(2_499))
    assert changes(fleet.pass_ms(1)) == [("lease_lapsed", "pool-a-0")]
    assert fleet.member("pool-a-0").suspended
    assert not of(fleet.submit("t0"), Start)
    assert changes(fleet.tell(LeaseRenewed("pool-a-0"))) == [("lease_renewed", "pool-a-0")]
    assert started(fleet.submit("t1")) == [("t1", 1, "pool-a-0")]


@pytest.mark.req("ORCH-3018")
def test_work_goes_on_while_a_lease_has_lapsed() -> None:
    fleet = silent()
    fleet.submit("t0", deadline_ms=60_000)
    fleet.submit("w0")
    assert changes(fleet.pass_ms(4_000)) == [("lease_lapsed", "pool-a-0")]
    assert fleet.state_of("t0") == "running"
    fleet.tell(ended("t0", replica_id="pool-a-0"))
    assert fleet.state_of("t0") == "finished"
    assert fleet.state_of("w0") == "queued"
    assert started(fleet.tell(LeaseRenewed("pool-a-0"))) == [("w0", 1, "pool-a-0")]


@pytest.mark.req("ORCH-3018")
def test_whoever_renews_keeps_its_lease() -> None:
    fleet = silent()
    for _ in range(40):
        assert not changes(fleet.pass_ms(1_000))
        assert not changes(fleet.tell(LeaseRenewed("pool-a-0")))
    assert fleet.home_ready() == ["pool-a-0"]


@pytest.mark.req("ORCH-3018")
def test_what_stays_silent_counts_as_lost_and_is_made_anew() -> None:
    fleet = silent(2)
    fleet.submit("t0")
    assert fleet.state_of("t0") == "running"
    commands = []
    for _ in range(15):
        commands += fleet.pass_ms(1_000)
        fleet.tell(LeaseRenewed("pool-a-1"))
    refusal = one(commands, RefuseReplica)
    assert (refusal.replica_id, refusal.reason) == ("pool-a-0", "not heard of for 15000 ms")
    assert fleet.state_of("t0") == "failed"
    fault = fleet.member("pool-a-0").fault
    assert fault is not None
    assert fault.kind == "lease"
    # It comes back to life before the new order: the old incarnation is not wanted any more.
    assert of(fleet.tell(ReplicaLoading("pool-a-0", "pool-a", 1)), RefuseReplica)
    assert not of(fleet.tell(LeaseRenewed("pool-a-0")), OrderReplica)
    assert one(fleet.pass_ms(500), OrderReplica).order.incarnation == 2
    fleet.up("pool-a-0")
    assert fleet.home_ready() == ["pool-a-1", "pool-a-0"]


@pytest.mark.req("ORCH-3018")
def test_a_replica_that_hangs_while_it_loads_is_given_up_too() -> None:
    fleet = Fleet(pool(replicas=1), lease=LEASE)
    fleet.come("pool-a-0")
    assert not changes(fleet.pass_ms(14_999))
    assert changes(fleet.pass_ms(1)) == [("restart", "pool-a-0")]
    assert fleet.scheduler.readiness()["pool-a"].startswith("unavailable: ")


def test_a_replica_that_drains_is_not_brought_back() -> None:
    fleet = silent(2)
    fleet.submit("t0")
    member = fleet.member("pool-a-0")

    def drain() -> None:
        members.drain(fleet.scheduler.state, member, (fleet.now_ms + 60_000) * MS, relaunch=True)

    fleet.during(drain)
    fleet.pass_ms(2_000)
    fleet.tell(LeaseRenewed("pool-a-1"))
    assert changes(fleet.pass_ms(1_000)) == [("lease_lapsed", "pool-a-0")]
    fleet.tell(LeaseRenewed("pool-a-0"))
    assert fleet.home_ready() == ["pool-a-1"]


@pytest.mark.req("ORCH-3018", "ORCH-3038")
def test_a_suspended_replica_that_drains_for_a_fault_is_launched_again_when_its_task_ends() -> None:
    fleet = silent()
    fleet.submit("t0", deadline_ms=60_000)
    assert changes(fleet.pass_ms(3_000)) == [("lease_lapsed", "pool-a-0")]
    fleet.tell(ReplicaFaulted("pool-a-0", "xid", "error 48"))
    assert changes(fleet.tell(ended("t0", replica_id="pool-a-0"))) == [("restart", "pool-a-0")]
    assert fleet.state_of("t0") == "finished"
    assert not fleet.member("pool-a-0").suspended
    assert not changes(fleet.tell(LeaseRenewed("pool-a-0"))), "there is nothing to bring back"
    fleet.pass_ms(500)
    fleet.ready("pool-a-0")
    assert fleet.home_ready() == ["pool-a-0"]


@pytest.mark.req("ORCH-3018", "ORCH-2101")
def test_a_suspended_replica_of_a_pool_that_is_drained_goes_when_its_task_ends() -> None:
    fleet = silent()
    fleet.submit("t0", deadline_ms=60_000)
    fleet.pass_ms(3_000)
    fleet.tell(DrainRequested(1, "pool-a", 60_000))
    commands = fleet.tell(ended("t0", replica_id="pool-a-0"))
    assert one(commands, RetireReplica).replica_id == "pool-a-0"
    assert fleet.state_of("t0") == "finished"
    assert fleet.pool().drained


@pytest.mark.parametrize("relaunch", [False, True])
@pytest.mark.req("ORCH-3018", "ORCH-3038")
def test_a_draining_replica_that_is_lost_is_retired_or_made_anew(relaunch: bool) -> None:
    fleet = silent(2)
    fleet.submit("t0", deadline_ms=60_000)
    member = fleet.member("pool-a-0")

    def drain() -> None:
        member.pool.desired = 2 if relaunch else 1
        member.pool.scaling = ScalingPolicy(1, 2, 2)
        restarts.noted(fleet.scheduler.state, member, "ecc", "double-bit error")
        members.drain(fleet.scheduler.state, member, (fleet.now_ms + 60_000) * MS, relaunch=relaunch)

    fleet.during(drain)
    commands = []
    for _ in range(15):
        commands += fleet.pass_ms(1_000)
        fleet.tell(LeaseRenewed("pool-a-1"))
    assert one(commands, RefuseReplica).reason == "not heard of for 15000 ms"
    assert fleet.state_of("t0") == "failed"
    assert member.drain_until_ns is None or member.state == "retired"
    if relaunch:
        assert not of(commands, RetireReplica)
        fault = member.fault
        assert fault is not None
        assert fault.kind == "lease"
        assert one(fleet.pass_ms(500), OrderReplica).order.incarnation == 2
    else:
        assert one(commands, RetireReplica) == RetireReplica("set-a", "pool-a-0", 1)
        assert fleet.members == ["pool-a-1"]
        assert not of(fleet.pass_ms(2_000), OrderReplica)


def test_without_leases_silence_means_nothing() -> None:
    fleet = Fleet(pool(replicas=1))
    fleet.up("pool-a-0")
    assert not changes(fleet.pass_ms(3_600_000))
    assert fleet.home_ready() == ["pool-a-0"]
