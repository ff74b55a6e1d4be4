"""Replicas of managed pools whose links are cut: they return with their incarnation, and with what they run."""

import pytest

from contracts.pools import LaunchEngine, OrderReplica, ReplicaGone
from contracts.scheduling import (
    AnyCommand,
    Pause,
    RefuseReplica,
    ReplicaLost,
    ReplicaReady,
    ReplicaUnready,
    RunningAttempt,
    Start,
    Stop,
)
from orchestrator.core.pools import members
from tests.unit.core.core_kit import of, one, replica, started
from tests.unit.core.pool_kit import Fleet, changes, pool


def returns(
    fleet: Fleet, replica_id: str, *running: RunningAttempt, incarnation: int = 1, **over: int
) -> list[AnyCommand]:
    order = fleet.orders[replica_id]
    info = replica(replica_id, pool_id=order.pool_id, node_id=order.node_id, **over)
    return fleet.tell(ReplicaReady(info, incarnation, running))


def cut(replicas: int = 1) -> Fleet:
    """A task ran on the first replica when its link was cut."""
    fleet = Fleet(pool(replicas=replicas))
    fleet.up("pool-a-0")
    fleet.submit("t")
    fleet.lose("pool-a-0")
    return fleet


@pytest.mark.req("ORCH-3009", "ORCH-3010", "ORCH-3018")
def test_a_replica_that_returns_is_taken_in_one_event_and_goes_on() -> None:
    fleet = cut()
    commands = returns(fleet, "pool-a-0", RunningAttempt("t", 1, 5, 9))
    assert not of(commands, Start) + of(commands, RefuseReplica)
    assert fleet.state_of("t") == "running"
    member = fleet.member("pool-a-0")
    assert (member.state, member.failures, fleet.pool().failures) == ("ready", 0, 0)
    # Nothing is left of the wait for another launch.
    assert not of(fleet.pass_ms(900), LaunchEngine) + of(fleet.pass_ms(50), OrderReplica)


@pytest.mark.req("ORCH-3009")
def test_failures_of_the_engine_before_the_cut_stay_counted() -> None:
    fleet = Fleet(pool(replicas=1))
    fleet.come("pool-a-0")
    fleet.fail("pool-a-0")
    fleet.pass_ms(500)
    fleet.ready("pool-a-0")
    fleet.lose("pool-a-0")
    returns(fleet, "pool-a-0")
    assert fleet.member("pool-a-0").failures == 1


@pytest.mark.req("ORCH-3010")
@pytest.mark.parametrize(
    ("incarnation", "reason"), [(2, "incarnation 2 of pool-a-0"), (0, "has to register as loading")]
)
def test_one_of_another_incarnation_or_of_none_is_refused(incarnation: int, reason: str) -> None:
    fleet = cut()
    commands = returns(fleet, "pool-a-0", RunningAttempt("t", 1), incarnation=incarnation)
    assert reason in one(commands, RefuseReplica).reason
    assert fleet.state_of("t") == "queued"


@pytest.mark.req("ORCH-3010")
def test_one_that_returns_after_another_was_ordered_in_its_place_is_refused() -> None:
    fleet = cut()
    assert one(fleet.pass_ms(500), OrderReplica).order.incarnation == 2
    assert "incarnation 1" in one(returns(fleet, "pool-a-0", RunningAttempt("t", 1)), RefuseReplica).reason
    fleet.up("pool-a-0")
    assert fleet.state_of("t") == "running"


@pytest.mark.req("ORCH-3026")
def test_what_went_on_elsewhere_meanwhile_is_stopped_when_its_replica_returns() -> None:
    fleet = cut(replicas=2)
    fleet.up("pool-a-1")
    commands = returns(fleet, "pool-a-0", RunningAttempt("t", 1, 5, 9))
    assert [(stop.attempt, stop.reason) for stop in of(commands, Stop)] == [(1, "stale")]
    assert fleet.member("pool-a-0").state == "ready"


@pytest.mark.req("ORCH-3009")
def test_one_whose_link_was_made_anew_before_the_loss_was_told_is_no_restart() -> None:
    fleet = Fleet(pool(replicas=1))
    fleet.up("pool-a-0")
    fleet.submit("t")
    commands = returns(fleet, "pool-a-0", RunningAttempt("t", 1, 5, 9))
    assert not changes(commands)
    assert not of(commands, Start)
    assert fleet.state_of("t") == "running"


@pytest.mark.req("ORCH-3009")
def test_the_kind_of_an_end_says_whether_a_task_may_have_caused_it() -> None:
    fleet = Fleet(pool(replicas=1))
    fleet.up("pool-a-0")
    fleet.submit("t")
    record = fleet.scheduler.state.tasks["t"]
    seen = []
    for event in (
        ReplicaUnready("pool-a-0", "segfault", "exit"),
        ReplicaUnready("pool-a-0", "killed by signal 9", "killed"),
        ReplicaLost("pool-a-0", "eof"),
    ):
        assert one(fleet.tell(event), Pause).cause == "lost"
        seen.append((record.losses, record.crashes))
        fleet.pass_ms(60_000)
        if "pool-a-0" not in fleet.scheduler.state.replicas:
            fleet.come("pool-a-0")
        fleet.pass_ms(60_000)
        fleet.ready("pool-a-0")
        assert fleet.state_of("t") == "running"
    assert seen == [(1, 1), (2, 1), (3, 1)]


@pytest.mark.req("ORCH-3009")
@pytest.mark.parametrize("how", ["gone", "retired"])
def test_one_that_will_not_return_is_awaited_no_longer(how: str) -> None:
    fleet = Fleet(pool(replicas=2, smallest=0))
    fleet.up("pool-a-0")
    state = fleet.scheduler.state
    state.awaited["pool-a-1"] = None
    fleet.submit("t")
    assert fleet.state_of("t") == "queued"
    if how == "gone":
        commands = fleet.tell(ReplicaGone("pool-a-1", 1, "actor", "its process died"))
    else:
        fleet.pool().desired = 1
        commands = fleet.during(lambda: members.retire(state, fleet.member("pool-a-1"), "it is not needed"))
    assert started(commands) == [("t", 1, "pool-a-0")]
