"""Managed pools after a recovery: their replicas live on, and what a reload brought stays (ORCH-3051, ORCH-3031)."""

import pytest

from contracts.pools import DrainRequested, NodeInfo, NodesSeen, NotePool, OrderReplica, ReloadRequested
from contracts.scheduling import (
    Finish,
    RefuseReplica,
    Reject,
    ReplicaLoading,
    ReplicaReady,
    RunningAttempt,
    Start,
    Stop,
)
from orchestrator.core.recovery import RECOVERY_NS
from tests.unit.core.core_kit import MS, ended, of, one, replica, replica_set, started
from tests.unit.core.durable_kit import DurableFleet
from tests.unit.core.pool_kit import gpu_pool, pool

pytestmark = pytest.mark.req("ORCH-3051")
MODELS = {"llamacpp": ("small", "big")}


def up(*names: str, **over: object) -> DurableFleet:
    """A pool of as many replicas, all Ready."""
    core = DurableFleet(pool(replicas=len(names) or 1), **over)  # type: ignore[arg-type]
    core.up(*(names or ("pool-a-0",)))
    return core


def back(core: DurableFleet, replica_id: str, *running: RunningAttempt, **over: object) -> list[object]:
    order = core.orders[replica_id]
    info = replica(replica_id, pool_id=order.pool_id, node_id=order.node_id, **over)
    return list(core.tell(ReplicaReady(info, order.incarnation, running)))


@pytest.mark.req("ORCH-3008")
def test_orders_stand_as_they_did() -> None:
    core = up("pool-a-0", "pool-a-1")
    orders = core.scheduler.orders()
    core.restart()
    assert core.scheduler.orders() == orders
    assert of(core.see(NodeInfo("n0")), OrderReplica) == []


@pytest.mark.req("ORCH-3009")
def test_replicas_come_back_with_what_they_run() -> None:
    core = up()
    core.submit("run")
    core.submit("next")
    core.restart()
    assert list(core.scheduler.state.awaited) == ["pool-a-0"]
    commands = back(core, "pool-a-0", RunningAttempt("run", 1, 3, 3))
    assert not [each for each in commands if isinstance(each, Start | Stop | RefuseReplica)]
    commands = core.tell(ended("run", replica_id="pool-a-0"))  # type: ignore[assignment]
    assert one(commands, Finish).task_id == "run"  # type: ignore[arg-type]
    assert started(commands) == [("next", 1, "pool-a-0")]  # type: ignore[arg-type]


def test_a_replica_that_came_up_while_nobody_listened_is_launched() -> None:
    core = up()
    core.submit("run")
    core.restart()
    core.see(NodeInfo("n0"))
    order = core.orders["pool-a-0"]
    launches = len(core.launches)
    core.tell(ReplicaLoading("pool-a-0", "pool-a", order.incarnation))
    assert len(core.launches) == launches + 1
    # It told that it runs nothing, so nobody else is waited for.
    assert core.scheduler.state.awaited == {}
    assert started(core.ready("pool-a-0")) == [("run", 2, "pool-a-0")]


def test_one_that_never_comes_back_counts_as_gone_after_a_while() -> None:
    core = up()
    core.restart()
    core.see(NodeInfo("n0"))
    commands = core.pass_ms(121_000)
    assert "did not register" in of(commands, NotePool)[0].reason
    assert one(commands, OrderReplica).order.incarnation == 2


def test_new_replicas_have_new_names() -> None:
    core = up("pool-a-0", "pool-a-1")
    core.restart(replica_set(pools=(pool(replicas=3),)))
    commands = core.see(NodeInfo("n0"))
    assert [each.order.replica_id for each in of(commands, OrderReplica)] == ["pool-a-2"]


def test_fewer_are_kept_where_fewer_are_configured() -> None:
    core = up("pool-a-0", "pool-a-1")
    core.restart(replica_set(pools=(pool(replicas=1),)))
    core.see(NodeInfo("n0"))
    assert len(core.members) == 1


@pytest.mark.req("ORCH-3011")
def test_a_replica_on_other_gpus_than_configured_is_not_wanted_any_more() -> None:
    core = DurableFleet(gpu_pool(replicas=1, devices=("0",)), nodes=(NodeInfo("n0", gpus=4),))
    core.up("pool-a-0", gpu_uuids=("GPU-0",), devices=("0",))
    core.restart(replica_set(pools=(gpu_pool(replicas=1, devices=("1",)),)))
    assert core.scheduler.orders() == ()
    assert one(back(core, "pool-a-0"), RefuseReplica)  # type: ignore[arg-type]
    assert one(core.see(NodeInfo("n0", gpus=4)), OrderReplica).order.devices == (1,)


def test_an_order_that_had_no_room_yet_still_stands() -> None:
    core = DurableFleet(gpu_pool(replicas=1), nodes=())
    orders = core.scheduler.orders()
    core.restart()
    assert core.scheduler.orders() == orders
    assert one(core.tell(NodesSeen((NodeInfo("n1", gpus=1),))), OrderReplica).order.node_id == "n1"


@pytest.mark.req("ORCH-3031")
def test_a_reload_that_was_done_stays_done() -> None:
    core = up(models=MODELS)
    core.tell(ReloadRequested(1, "pool-a", "big"))
    core.up("pool-a-1")
    core.submit("run", model_ref="big")
    core.submit("next", model_ref="small")
    core.restart()
    assert core.pool().active.model_ref == "big"
    assert [each.replica_id for each in core.scheduler.orders()] == ["pool-a-1"]
    back(core, "pool-a-1", RunningAttempt("run", 1))
    assert started(core.tell(ended("run", replica_id="pool-a-1"))) == [("next", 1, "pool-a-1")]


@pytest.mark.req("ORCH-3031")
def test_a_reload_that_was_under_way_is_not_gone_on_with() -> None:
    core = up(models=MODELS)
    core.tell(ReloadRequested(1, "pool-a", "big"))
    core.restart()
    assert core.pool().active.model_ref == "small"
    assert [each.replica_id for each in core.scheduler.orders()] == ["pool-a-0"]
    assert core.pool().ordinal == 2


@pytest.mark.req("ORCH-3031")
def test_another_model_in_the_configuration_is_stronger_than_a_reload() -> None:
    core = up(models=MODELS)
    core.tell(ReloadRequested(1, "pool-a", "big"))
    core.up("pool-a-1")
    configured = replica_set(pools=(pool(replicas=1, model_ref="huge"),), model_refs=("huge",))
    core.restart(configured, models={"llamacpp": ("huge",)})
    assert core.pool().active.model_ref == "huge"
    assert core.scheduler.orders() == ()


@pytest.mark.req("ORCH-2101")
def test_a_drained_pool_stays_drained_and_a_drain_goes_on() -> None:
    core = up()
    core.submit("run")
    core.tell(DrainRequested(1, "pool-a", 60_000))
    core.restart()
    core.see(NodeInfo("n0"))
    assert one(core.submit("new"), Reject).error.code == "POOL_UNAVAILABLE"
    back(core, "pool-a-0", RunningAttempt("run", 1))
    commands = core.tell(ended("run", replica_id="pool-a-0"))
    assert one(commands, Finish).outcome.state == "finished"
    assert core.pool().drained
    core.restart()
    core.see(NodeInfo("n0"))
    assert core.pool().drained
    assert core.members == []


def test_tasks_of_a_pool_that_is_not_configured_any_more_are_served_by_the_others() -> None:
    core = DurableFleet(pool("pool-a", 1), pool("pool-b", 1))
    core.up("pool-a-0", "pool-b-0")
    core.submit("a")
    core.submit("b")
    core.restart(replica_set(pools=(pool("pool-b", 1),)))
    assert list(core.scheduler.state.awaited) == ["pool-b-0"]
    core.see(NodeInfo("n0"))
    back(core, "pool-b-0", RunningAttempt("b", 1))
    assert started(core.tell(ended("b", replica_id="pool-b-0"))) == [("a", 2, "pool-b-0")]


def test_the_hold_does_not_wait_for_what_was_not_ordered() -> None:
    core = up()
    core.submit("run")
    core.restart()
    core.pass_ms(RECOVERY_NS // MS)
    assert core.scheduler.state.awaited == {}
    assert not core.scheduler.state.is_held
