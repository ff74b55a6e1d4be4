"""How many replicas a pool is to have: up by the wait, down when the rest would do, from and to nothing."""

from typing import Any

import pytest

from contracts.pools import OrderReplica, ReloadRequested
from contracts.scheduling import TokensProgressed
from orchestrator.core.pools import members
from tests.unit.core.core_kit import MS, ended, of
from tests.unit.core.pool_kit import Fleet, changes, pool


def scaled(**over: Any) -> Fleet:
    values = {
        "replicas": 1,
        "smallest": 1,
        "largest": 8,
        "target_wait_ms": 500,
        "up_after_ms": 3_000,
        "down_after_ms": 20_000,
        "slots": 1,
    }
    return Fleet(pool(**{**values, **over}), over={"idle_timeout_ms": 600_000, "wall_timeout_ms": 3_600_000})


def load(fleet: Fleet, waiting: int) -> None:
    """One task runs on each replica that is up, and so many wait."""
    for number in range(len(fleet.home_ready()) + waiting):
        fleet.submit(f"t{fleet.numbers}-{number}")


@pytest.mark.req("ORCH-3018")
def test_a_fixed_pool_stays_as_it_is() -> None:
    fleet = scaled(largest=1)
    fleet.up("pool-a-0")
    load(fleet, 7)
    assert not changes(fleet.pass_ms(60_000))
    assert fleet.alarm_ns is None or fleet.alarm_ns > fleet.now_ms * MS


@pytest.mark.req("ORCH-3018")
def test_up_once_the_wait_has_been_too_long_for_long_enough() -> None:
    fleet = scaled()
    fleet.up("pool-a-0")
    load(fleet, 7)
    assert not changes(fleet.pass_ms(2_900))
    commands = fleet.pass_ms(1_500)
    # The wait would need more, but a pool doubles at most.
    assert changes(commands) == [("scaled_up", ""), ("ordered", "pool-a-1")]
    assert fleet.pool().desired == 2


@pytest.mark.req("ORCH-3018")
def test_replicas_that_are_under_way_are_counted_on() -> None:
    fleet = scaled(target_wait_ms=600)
    fleet.up("pool-a-0")
    load(fleet, 7)
    fleet.pass_ms(4_500)
    assert fleet.pool().desired == 2
    fleet.come("pool-a-1")
    fleet.pass_ms(20_000)
    once = fleet.pool().desired
    assert once < 8, "the wait shrinks with what is coming"
    # One that fails is not counted on: the pool grows beyond it.
    for replica_id in fleet.members[1:]:
        if fleet.member(replica_id).state == "ordered":
            fleet.come(replica_id)
        fleet.fail(replica_id)
    fleet.pass_ms(20_000)
    assert fleet.pool().desired > once


@pytest.mark.req("ORCH-3018")
def test_never_over_the_largest() -> None:
    fleet = scaled(largest=3, target_wait_ms=1)
    fleet.up("pool-a-0")
    load(fleet, 7)
    fleet.pass_ms(60_000)
    assert fleet.pool().desired == 3
    assert list(fleet.orders) == ["pool-a-0", "pool-a-1", "pool-a-2"]


@pytest.mark.req("ORCH-3018")
def test_down_one_at_a_time_when_the_rest_would_do() -> None:
    fleet = scaled(replicas=3, largest=3)
    fleet.up("pool-a-0", "pool-a-1", "pool-a-2")
    load(fleet, 0)
    # All three are busy: none can be spared.
    assert not changes(fleet.pass_ms(60_000))
    fleet.tell(ended("t0-0", replica_id="pool-a-0"))
    # Two run, and two replicas would be full with them.
    assert not changes(fleet.pass_ms(60_000))
    fleet.tell(ended("t1-1", replica_id="pool-a-1"))
    assert not changes(fleet.pass_ms(19_900))
    assert changes(fleet.pass_ms(1_200)) == [("scaled_down", ""), ("retired", "pool-a-1")]
    fleet.tell(ended("t2-2", replica_id="pool-a-2"))
    assert ("scaled_down", "") in changes(fleet.pass_ms(22_000))
    assert not changes(fleet.pass_ms(120_000)), "never below the smallest"
    assert fleet.pool().desired == 1


@pytest.mark.req("ORCH-3018")
def test_a_short_lull_takes_no_replica_away() -> None:
    fleet = scaled(replicas=2, largest=2, target_wait_ms=300)
    fleet.up("pool-a-0", "pool-a-1")
    for turn in range(6):
        fleet.pass_ms(15_000)
        fleet.submit(f"a{turn}")
        fleet.submit(f"b{turn}")
        fleet.pass_ms(2_000)
        fleet.tell(TokensProgressed(f"a{turn}", 1, 3, 7))
        fleet.tell(ended(f"a{turn}", replica_id="pool-a-0"))
        fleet.tell(ended(f"b{turn}", replica_id="pool-a-1"))
    assert fleet.pool().desired == 2


@pytest.mark.req("ORCH-3018")
def test_an_idle_pool_may_give_up_all_of_its_replicas() -> None:
    fleet = scaled(smallest=0)
    fleet.up("pool-a-0")
    assert ("retired", "pool-a-0") in changes(fleet.pass_ms(22_000))
    assert fleet.members == []
    assert fleet.pool().desired == 0


@pytest.mark.req("ORCH-3018")
def test_a_task_that_waits_for_nobody_brings_a_replica_at_once() -> None:
    fleet = scaled(smallest=0)
    fleet.up("pool-a-0")
    fleet.submit("t0")
    fleet.submit("w0")
    fleet.pool().desired = 0
    state = fleet.scheduler.state

    def gone() -> None:
        members.retire(state, fleet.member("pool-a-0"), "scaled to nothing")

    commands = fleet.during(gone)
    assert changes(commands) == [("retired", "pool-a-0"), ("scaled_up", ""), ("ordered", "pool-a-1")]
    assert len(of(commands, OrderReplica)) == 1
    fleet.up("pool-a-1")
    assert [fleet.state_of("t0"), fleet.state_of("w0")] == ["running", "queued"]


@pytest.mark.req("ORCH-3018", "ORCH-3031")
def test_a_pool_that_grew_during_a_reload_switches_at_its_new_size() -> None:
    fleet = Fleet(pool(replicas=1, largest=2), models={"llamacpp": ("small", "other")})
    fleet.up("pool-a-0")
    fleet.tell(ReloadRequested(1, "pool-a", "other", None))

    def grow() -> None:
        fleet.pool().desired = 2
        members.reconcile(fleet.scheduler.state, fleet.pool())

    fleet.during(grow)
    fleet.up("pool-a-1", model_digest="sha256:other")
    incoming = fleet.pool().incoming
    assert incoming is not None
    assert list(incoming.members) == ["pool-a-1", "pool-a-3"]
    fleet.up("pool-a-3", model_digest="sha256:other")
    assert fleet.pool().active is incoming


@pytest.mark.req("ORCH-3018")
def test_a_wait_that_is_too_long_ends_idleness_also_at_the_largest_size() -> None:
    fleet = scaled(replicas=2, largest=2, target_wait_ms=300)
    fleet.up("pool-a-0", "pool-a-1")
    fleet.pass_ms(5_000)
    assert fleet.pool().idle_since_ns
    load(fleet, 20)
    fleet.pass_ms(1_000)
    assert not fleet.pool().idle_since_ns
