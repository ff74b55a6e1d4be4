"""Drains and sizes of pools right after a recovery: a replica that is not heard of yet is not idle (ORCH-3051)."""

import pytest

from contracts.pools import DrainRequested, NodeInfo, NodesSeen, OrderReplica, RetireReplica
from contracts.scheduling import Finish, ReplicaReady, RunningAttempt, TokensProgressed
from orchestrator.core import journal
from orchestrator.core.pools import scaling
from orchestrator.core.recovery import RECOVERY_NS
from tests.unit.core.core_kit import MS, ended, of, one, replica, replica_set, started
from tests.unit.core.durable_kit import DurableFleet
from tests.unit.core.pool_kit import pool

pytestmark = pytest.mark.req("ORCH-3051")
HOLD_MS = RECOVERY_NS // MS
#: Nothing is stopped for making no tokens while nobody listens.
PATIENT = {"idle_timeout_ms": 60_000}


def back(core: DurableFleet, replica_id: str, *running: RunningAttempt) -> list[object]:
    order = core.orders[replica_id]
    info = replica(replica_id, pool_id=order.pool_id, node_id=order.node_id)
    return list(core.tell(ReplicaReady(info, order.incarnation, running)))


def retired(commands: list[object]) -> list[str]:
    return [each.replica_id for each in commands if isinstance(each, RetireReplica)]


def two_pools(drain_ms: int = 60_000) -> DurableFleet:
    """One task runs in each of two pools of a set; the first of them is being drained."""
    core = DurableFleet(pool("pool-a", 1, drain_ms=drain_ms), pool("pool-b", 1), over=PATIENT)
    core.up("pool-a-0", "pool-b-0")
    for n in range(2):
        core.submit(f"t{n}", determinism="best_effort", session_id=f"s{n}")
        core.tell(TokensProgressed(f"t{n}", 1, 3, 3))
    core.tell(DrainRequested(1, "pool-a", drain_ms))
    core.restart()
    core.see(NodeInfo("n0"))
    return core


@pytest.mark.req("ORCH-2101")
def test_a_drained_replica_that_is_awaited_is_not_idle() -> None:
    core = two_pools()
    assert not retired(back(core, "pool-b-0", RunningAttempt("t1", 1, 3, 3)))
    assert not retired(back(core, "pool-a-0", RunningAttempt("t0", 1, 3, 3)))
    assert (core.state_of("t0"), core.state_of("t1")) == ("running", "running")
    # It gets nothing more, and goes with the last that it runs.
    core.submit("t2")
    commands = core.tell(ended("t0", replica_id="pool-a-0"))
    assert retired(list(commands)) == ["pool-a-0"]
    assert not started(commands)


@pytest.mark.req("ORCH-2101")
def test_one_that_does_not_come_back_goes_with_the_hold() -> None:
    core = two_pools()
    back(core, "pool-b-0", RunningAttempt("t1", 1, 3, 3))
    commands = core.pass_ms(HOLD_MS)
    assert retired(list(commands)) == ["pool-a-0"]
    assert one(commands, Finish).task_id == "t0"


@pytest.mark.req("ORCH-2101", "ORCH-3009")
@pytest.mark.parametrize("is_back", [True, False])
def test_a_drain_whose_time_is_over_in_the_hold_waits_for_who_is_awaited(is_back: bool) -> None:
    core = DurableFleet(pool(replicas=1, drain_ms=1_000))
    core.up("pool-a-0")
    core.submit("t0")
    core.tell(DrainRequested(1, "pool-a", 1_000))
    core.restart()
    steps = 0
    tell = core.tell

    def counted(event: object) -> object:
        nonlocal steps
        steps += 1
        return tell(event)  # type: ignore[arg-type]

    core.tell = counted  # type: ignore[assignment, method-assign]
    commands = core.pass_ms(HOLD_MS - 1)
    assert (core.members, core.state_of("t0"), of(commands, Finish)) == (["pool-a-0"], "queued", [])
    # Nobody looks again and again meanwhile.
    assert steps < 5
    if is_back:
        back(core, "pool-a-0", RunningAttempt("t0", 1, 3, 3))
        commands = core.tell(ended("t0", replica_id="pool-a-0"))
        assert one(commands, Finish).outcome.state == "finished"
    else:
        error = one(core.pass_ms(1), Finish).outcome.error
        assert error is not None
        assert (error.code, error.retriable) == ("POOL_UNAVAILABLE", True)
    assert core.members == []
    assert core.pool().drained


def shrunk() -> DurableFleet:
    """A pool of two goes down to one: the one that drains for it is busy, and the scheduler dies."""
    core = DurableFleet(pool("pool-a", 2, smallest=1, largest=2), over=PATIENT)
    core.up("pool-a-0", "pool-a-1")
    for n in range(2):
        core.submit(f"t{n}", determinism="best_effort", session_id=f"s{n}")
        core.tell(TokensProgressed(f"t{n}", 1, 3, 3))
    core.during(lambda: scaling._resize(core.scheduler.state, core.pool(), 1, "for a test"))
    assert list(core.scheduler.state.pools.draining) == ["pool-a-1"]
    core.journal.put([journal.kept_pool(core.pool())])
    core.restart()
    return core


@pytest.mark.req("ORCH-3018")
def test_a_pool_that_is_too_large_lets_nobody_go_who_is_awaited() -> None:
    core = shrunk()
    # The manager tells of its nodes before the replicas have their links.
    assert not retired(list(core.see(NodeInfo("n0"))))
    back(core, "pool-a-1", RunningAttempt("t1", 1, 3, 3))
    commands = back(core, "pool-a-0", RunningAttempt("t0", 1, 3, 3))
    assert not retired(commands)
    assert (core.state_of("t0"), core.state_of("t1")) == ("running", "running")
    assert list(core.scheduler.state.pools.draining) == ["pool-a-1"]
    assert retired(list(core.tell(ended("t1", replica_id="pool-a-1")))) == ["pool-a-1"]


@pytest.mark.req("ORCH-3018")
def test_who_is_not_back_after_the_hold_goes_first() -> None:
    core = shrunk()
    core.see(NodeInfo("n0"))
    back(core, "pool-a-1", RunningAttempt("t1", 1, 3, 3))
    assert retired(list(core.pass_ms(HOLD_MS))) == ["pool-a-0"]
    assert core.state_of("t1") == "running"


@pytest.mark.req("ORCH-3018")
def test_a_pool_that_is_too_small_does_not_wait_to_grow() -> None:
    core = DurableFleet(pool("pool-a", 1))
    core.up("pool-a-0")
    core.submit("t0")
    core.restart(replica_set(pools=(pool("pool-a", 2),)))
    commands = core.tell(NodesSeen((NodeInfo("n0"),)))
    assert [each.order.replica_id for each in of(commands, OrderReplica)] == ["pool-a-1"]
