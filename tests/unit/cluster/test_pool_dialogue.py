"""What operators ask about pools is answered, once; orders reach the manager that is there, if one is."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from contracts import control_messages as wire
from contracts import pools as ev
from contracts.control import DrainRequest, ReloadRequest
from contracts.errors import ErrorInfo, OrchError
from contracts.messages import Done, Failed, Launch
from orchestrator.cluster.gateway import ClusterGateway
from orchestrator.cluster.pool_dialogue import WARNINGS, PoolDialogue
from orchestrator.cluster.pool_telemetry import PoolTelemetry
from orchestrator.cluster.scheduler_service import SchedulerService
from tests.unit.cluster.scripted import MODEL, SECRET, Cluster, cluster, collect, submit, until
from tests.unit.cluster.scripted_core import Peer

ORDER = ev.ReplicaOrder("pool-0", 1, "pool", "m", "node-1", (0,))
REFUSED = ErrorInfo("CONFLICT", "a reload is under way", retriable=True)


async def refusal(call: Any) -> ErrorInfo:
    with pytest.raises(OrchError) as refused:
        await call
    return refused.value.info


# ------------------------------------------------------------- by the gateway, in earnest


@pytest.mark.req("ORCH-2103", "OC-CTRL-2001", "OC-POOL-3003")
async def test_health_shows_the_pool_and_its_replica() -> None:
    async with cluster() as (_, gateway):
        health = await gateway.pool_health("pool")
        assert (health.pool_id, health.engine, health.accelerator, health.model_ref) == (
            "pool",
            "llamacpp",
            "cpu-dev",
            MODEL,
        )
        assert (health.live, health.ready, health.draining, health.restarts) == (True, True, False, 0)
        (replica,) = health.replicas
        assert (replica.replica_id, replica.phase, replica.incarnation, replica.node_id) == (
            "pool-0",
            "ready",
            1,
            "node-1",
        )
        assert (health.metrics.slots_total, health.metrics.slots_free, health.metrics.replicas_ready) == (2, 2, 1)
        assert health.last_error is None


@pytest.mark.req("ORCH-2104", "ORCH-3095", "OC-CTRL-2004")
async def test_sets_and_capabilities_are_told() -> None:
    async with cluster() as (_, gateway):
        (status,) = await gateway.replica_sets()
        assert (status.id, status.load, status.pools, status.engine_version) == (
            "set",
            0.0,
            ["pool"],
            "scripted fake 1",
        )
        (engine,) = (await gateway.capabilities()).engines
        assert (engine.engine, engine.models, engine.accelerators) == ("llamacpp", [MODEL], ["cpu-dev"])


@pytest.mark.req("ORCH-2101", "ORCH-3031")
async def test_a_drained_pool_finishes_its_work_refuses_more_and_comes_back_by_a_reload() -> None:
    async with cluster() as (running, gateway):
        running.adapters[0].gate.clear()
        await submit(gateway, "running", 6, prompt="gated")
        await until(lambda: "running/1" in running.adapters[0].active)
        await gateway.drain_pool("pool", DrainRequest(60_000))
        health = await gateway.pool_health("pool")
        assert (health.draining, health.drained) == (True, False)
        info = await refusal(submit(gateway, "late"))
        assert (info.code, info.retriable) == ("POOL_UNAVAILABLE", True)
        running.adapters[0].gate.set()
        assert len((await collect(gateway, "running"))[0]) == 6
        await until(lambda: not running.fleet.groups)
        health = await gateway.pool_health("pool")
        assert (health.drained, health.live, health.replicas) == (True, False, [])
        assert running.adapters[0].exit.done()
        await gateway.drain_pool("pool", DrainRequest(0))  # again: no error, no change
        await gateway.reload_pool("pool", ReloadRequest(MODEL))
        await running.ready(gateway)
        await submit(gateway, "again", 3)
        assert len((await collect(gateway, "again"))[0]) == 3


@pytest.mark.req("ORCH-2101", "ORCH-3031")
async def test_what_still_runs_at_a_drains_deadline_is_ended() -> None:
    async with cluster() as (running, gateway):
        running.adapters[0].gate.clear()
        await submit(gateway, "running", 6, prompt="gated")
        await until(lambda: "running/1" in running.adapters[0].active)
        await gateway.drain_pool("pool", DrainRequest(0))
        _, end = await collect(gateway, "running")
        assert isinstance(end, ErrorInfo)
        assert (end.code, end.retriable) == ("POOL_UNAVAILABLE", True)
        await until(lambda: not running.fleet.groups)
        assert (await gateway.pool_health("pool")).drained


@pytest.mark.req("ORCH-2102", "ORCH-3031", "ORCH-3033")
async def test_a_reload_brings_another_model_up_and_a_rollback_the_first_one_back() -> None:
    running = Cluster()
    running.config = replace(running.config, models={"llamacpp": ("other-model",)})
    running.scheduler = SchedulerService(running.config, SECRET)
    await running.start()
    running.start_replica()
    gateway = running.gateway()
    try:
        await running.ready(gateway)

        async def serves(model_ref: str) -> None:
            async with asyncio.timeout(20):
                health = await gateway.pool_health("pool")
                while health.model_ref != model_ref or len(health.replicas) != 1:
                    await asyncio.sleep(0.01)
                    health = await gateway.pool_health("pool")

        await gateway.reload_pool("pool", ReloadRequest("other-model"))
        await serves("other-model")
        reload = (await gateway.pool_health("pool")).reload
        assert reload is not None
        assert (reload.state, reload.model_ref) == ("done", "other-model")
        await gateway.rollback_pool("pool")
        await serves(MODEL)
        await until(lambda: len(running.fleet.groups) == 1)
    finally:
        await running.close()


@pytest.mark.req("ORCH-2102", "ORCH-3031")
async def test_a_model_that_is_not_known_is_refused_with_those_that_are() -> None:
    async with cluster() as (_, gateway):
        info = await refusal(gateway.reload_pool("pool", ReloadRequest("no-such-model")))
        assert (info.code, info.engine) == ("INVALID_PARAMS", "llamacpp")
        assert info.message == f"model 'no-such-model' is not known for llamacpp; known: {MODEL}"
        assert (await gateway.pool_health("pool")).reload is None


@pytest.mark.req("ORCH-3033")
async def test_there_is_nothing_to_roll_back_or_to_promote_before_a_reload() -> None:
    async with cluster() as (_, gateway):
        for call in (gateway.rollback_pool("pool"), gateway.promote_pool("pool")):
            assert (await refusal(call)).code == "CONFLICT"


@pytest.mark.req("ORCH-2101", "ORCH-2102", "ORCH-2103")
@pytest.mark.parametrize(
    "ask",
    [
        lambda gateway: gateway.pool_health("none"),
        lambda gateway: gateway.drain_pool("none", DrainRequest(0)),
        lambda gateway: gateway.reload_pool("none", ReloadRequest(MODEL)),
        lambda gateway: gateway.promote_pool("none"),
        lambda gateway: gateway.rollback_pool("none"),
    ],
    ids=["health", "drain", "reload", "promote", "rollback"],
)
async def test_a_pool_that_is_not_there_is_said_so_with_those_that_are(ask: Callable[[ClusterGateway], Any]) -> None:
    async with cluster() as (running, gateway):
        info = await refusal(ask(gateway))
        assert info.code == "NOT_FOUND"
        assert "pool" in info.message.split("there is:")[-1]
        assert running.scheduler._pools._asked == {}


async def test_an_ingress_that_left_before_its_answer_harms_nobody() -> None:
    async with cluster() as (running, gateway):
        dialogue = running.scheduler._pools
        (connection,) = [each for each in running.scheduler._server._connections if each.role == "ingress"]
        await gateway.close()
        await until(lambda: connection.closed)
        dialogue.request(connection, wire.DrainPool(1, "pool", 60_000))
        assert dialogue._asked == {}
        other = running.gateway()
        await until(lambda: not running.fleet.groups)
        assert (await other.pool_health("pool")).drained


# ------------------------------------------------------------------------ the dialogue


class Core:
    """The one method of the scheduler's core that the dialogue reads."""

    def orders(self) -> tuple[ev.ReplicaOrder, ...]:
        return (ORDER,)


class Dialogue:
    """A dialogue whose core takes down what it is told, and one replica that is connected."""

    def __init__(self) -> None:
        self.told: list[ev.PoolEvent] = []
        self.registry = CollectorRegistry()
        self.replica = Peer("replica", "pool-0")
        telemetry = PoolTelemetry({"pool": "llamacpp"}, self.registry)
        replicas: Any = {"pool-0": self.replica}
        self.under_test = PoolDialogue(Core(), self.told.append, replicas, telemetry)  # type: ignore[arg-type]

    def manager(self) -> Any:
        peer: Any = Peer("manager", "pool-manager")
        self.under_test.manager_opened(peer)
        return peer


@pytest.mark.req("OC-POOL-3001")
def test_a_manager_is_told_all_orders_and_then_each_change() -> None:
    dialogue = Dialogue()
    change = ev.OrderReplica("set", ORDER)
    dialogue.under_test.order(change)  # nobody is there: whoever comes is told all of them
    manager = dialogue.manager()
    dialogue.under_test.order(change)
    dialogue.under_test.order(ev.RetireReplica("set", "pool-0", 1))
    assert manager.take() == [wire.Orders((ORDER,)), change, ev.RetireReplica("set", "pool-0", 1)]


@pytest.mark.req("OC-POOL-3001")
def test_a_later_manager_takes_the_place_of_the_one_before_it() -> None:
    dialogue = Dialogue()
    first, second = dialogue.manager(), dialogue.manager()
    assert (first.closed, second.closed) == (True, False)
    seen = ev.NodesSeen((ev.NodeInfo("node-1"),))
    dialogue.under_test.report(first, ev.NodesSeen(()))
    dialogue.under_test.report(second, seen)
    assert dialogue.told == [seen]
    dialogue.under_test.manager_closed(first)
    change = ev.OrderReplica("set", ORDER)
    dialogue.under_test.order(change)
    assert second.take()[1:] == [change]
    dialogue.under_test.manager_closed(second)
    dialogue.under_test.order(change)
    assert second.take() == []


@pytest.mark.req("ORCH-2101", "ORCH-2102", "ORCH-3033")
def test_each_request_is_an_event_and_is_answered_to_who_asked() -> None:
    dialogue = Dialogue()
    one: Any = Peer("ingress", "one")
    other: Any = Peer("ingress", "other")
    dialogue.under_test.request(one, wire.DrainPool(7, "pool", 500))
    dialogue.under_test.request(other, wire.ReloadPool(7, "pool", "m", 10))
    dialogue.under_test.request(one, wire.PromotePool(8, "pool"))
    dialogue.under_test.request(other, wire.RollbackPool(8, "pool"))
    assert dialogue.told == [
        ev.DrainRequested(1, "pool", 500),
        ev.ReloadRequested(2, "pool", "m", 10),
        ev.PromoteRequested(3, "pool"),
        ev.RollbackRequested(4, "pool"),
    ]
    for number, error in ((4, None), (1, None), (2, REFUSED), (3, REFUSED)):
        dialogue.under_test.answer(ev.AnswerControl("", number, error))
    assert one.take() == [Done(7), Failed(8, REFUSED)]
    assert other.take() == [Done(8), Failed(7, REFUSED)]
    assert dialogue.under_test._asked == {}


@pytest.mark.req("OC-POOL-3001")
def test_a_launch_reaches_its_replica_if_it_is_there() -> None:
    dialogue = Dialogue()
    dialogue.under_test.launch(ev.LaunchEngine("set", "pool-0", 3))
    dialogue.under_test.launch(ev.LaunchEngine("set", "pool-1", 3))
    assert dialogue.replica.take() == [Launch(3)]


@pytest.mark.req("OC-POOL-3030", "ORCH-3028")
@pytest.mark.parametrize("change", ["restart", "breaker_open", "lease_lapsed", "ordered", "drained"])
def test_decisions_are_logged_with_their_reason_and_counted(change: ev.PoolChange) -> None:
    dialogue = Dialogue()
    with capture_logs() as lines:
        dialogue.under_test.note(ev.NotePool("set", "pool", change, "because", "pool-0", "exit"))
    assert lines == [
        {
            "event": f"pool.{change}",
            "log_level": "warning" if change in WARNINGS else "info",
            "pool_id": "pool",
            "replica_id": "pool-0",
            "kind": "exit",
            "why": "because",
        }
    ]
    labels = {"engine": "llamacpp", "pool_id": "pool", "change": change}
    assert dialogue.registry.get_sample_value("pool_changes_total", labels) == 1
