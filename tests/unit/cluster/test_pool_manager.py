"""Replicas that are ordered exist, and are made again when they, their node or the manager die."""

import asyncio

import pytest
from msgspec.structs import replace

from contracts import messages as wire
from contracts.control import PoolHealth, ReplicaHealth
from contracts.engine import EngineExit
from contracts.policies import LeasePolicy
from contracts.pools import NodeInfo, ReplicaOrder
from contracts.scheduling import ReplicaLoading, ReplicaReady
from contracts.tasks import ReplicaInfo
from orchestrator.cluster import pool_manager, relink, scheduler_service, uplink
from orchestrator.cluster.channel import connect
from orchestrator.cluster.connection import Connection
from orchestrator.cluster.gateway import ClusterGateway
from orchestrator.cluster.scheduler_service import SchedulerService
from tests.unit.cluster.scripted import HOST, NODE, RESTART, SECRET, Cluster, cluster, collect, submit, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the next look at the nodes or at a placement."""
    for name in ("NODES_POLL_S", "PLACED_POLL_S_MIN", "PLACED_POLL_S_MAX"):
        monkeypatch.setattr(pool_manager, name, 0.01)
    monkeypatch.setattr(relink, "RECONNECT_MIN_S", 0.01)


async def health_when(gateway: ClusterGateway, said: "Said") -> PoolHealth:
    """The pool's health, once it is as awaited."""
    async with asyncio.timeout(20):
        while not said(health := await gateway.pool_health("pool")):
            await asyncio.sleep(0.01)
    return health


class Said:
    """Whether the only replica of the pool is as awaited; what is None is not looked at."""

    def __init__(self, phase: str | None = None, incarnation: int | None = None) -> None:
        self._phase = phase
        self._incarnation = incarnation

    def __call__(self, health: PoolHealth) -> bool:
        if len(health.replicas) != 1:
            return False
        replica = health.replicas[0]
        wanted = {"phase": self._phase, "incarnation": self._incarnation}
        return all(value is None or getattr(replica, name) == value for name, value in wanted.items())


async def only_replica(gateway: ClusterGateway) -> ReplicaHealth:
    (replica,) = (await gateway.pool_health("pool")).replicas
    return replica


# ------------------------------------------------------------------------ the manager


@pytest.mark.req("OC-POOL-3001", "ORCH-3010")
async def test_a_manager_that_was_restarted_takes_over_what_is_there_and_ends_what_is_left_over() -> None:
    async with cluster() as (running, gateway):
        hosts = dict(running.fleet.hosts)
        await running.stop_manager()
        for left in (ReplicaOrder("pool-0", 7, "pool", "m", NODE), ReplicaOrder("gone-3", 1, "gone", "m", NODE)):
            group = await running.fleet.reserve(left, ())
            await running.fleet.start(left, group, NODE)
        left_over = [host for name, host in running.fleet.hosts.items() if name not in hosts]
        running.start_manager()
        await until(lambda: sorted(running.fleet.groups) == ["pool-0-1"])
        await until(lambda: all(host.done() for host in left_over))
        assert [hosts[name] for name in hosts] == [running.fleet.hosts["pool-0-1"]]
        assert not hosts["pool-0-1"].done()
        await health_when(gateway, Said("ready", 1))
        await submit(gateway, "after", 3)
        assert len((await collect(gateway, "after"))[0]) == 3


@pytest.mark.req("OC-POOL-3001")
async def test_work_goes_on_without_a_manager() -> None:
    async with cluster() as (running, gateway):
        await running.stop_manager()
        await submit(gateway, "without", 3)
        assert len((await collect(gateway, "without"))[0]) == 3
        assert (await only_replica(gateway)).phase == "ready"


@pytest.mark.req("OC-POOL-3001", "ORCH-3053")
async def test_a_replica_that_died_while_there_was_no_manager_is_made_again_by_the_next_one() -> None:
    async with cluster() as (running, gateway):
        await running.stop_manager()
        died = running.fleet.hosts["pool-0-1"]
        died.cancel()
        await until(lambda: not running.scheduler._replicas)
        running.start_manager()
        await health_when(gateway, Said("ready"))
        assert len(running.fleet.groups) == 1
        # Told soon, the manager makes the dead one's incarnation again, and replaces it once the next one is ordered.
        assert [host is died for host in running.fleet.hosts.values() if not host.done()] == [False]


async def test_two_managers_do_not_fight_over_the_orders() -> None:
    """One that comes later takes the place of the one before it, which connects again and so on; replicas stay."""
    async with cluster() as (running, gateway):
        first = running.manager
        running.start_manager()
        await asyncio.sleep(0.1)
        assert first is not None
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await health_when(gateway, Said("ready", 1))
        assert len(running.adapters) == 1


# ---------------------------------------------------------------- actors and nodes die


@pytest.mark.req("ORCH-3010", "ORCH-3053", "OC-POOL-3010")
async def test_a_replica_that_was_killed_is_replaced_by_its_next_incarnation() -> None:
    async with cluster() as (running, gateway):
        running.fleet.hosts["pool-0-1"].cancel()
        health = await health_when(gateway, Said("ready", 2))
        assert sorted(running.fleet.groups) == ["pool-0-2"]
        assert (health.restarts, health.replicas[0].restarts) == (1, 1)
        error = health.last_error
        assert error is not None
        assert (error.kind, error.replica_id) == ("actor", "pool-0")
        await submit(gateway, "after", 3)
        assert len((await collect(gateway, "after"))[0]) == 3


@pytest.mark.req("ORCH-3008", "ORCH-3010")
async def test_a_node_that_is_gone_and_comes_back_gets_its_replica_again() -> None:
    async with cluster() as (running, gateway):
        await running.stop_replica()
        health = await health_when(gateway, Said("pending"))
        assert not health.ready
        assert health.last_error is not None
        readiness = await gateway.readiness()
        assert not readiness.ready
        running.start_replica()
        await health_when(gateway, Said("ready"))
        assert len(running.fleet.groups) == 1
        assert sum(not host.done() for host in running.fleet.hosts.values()) == 1


@pytest.mark.req("ORCH-3008")
async def test_a_replica_moves_to_a_node_that_is_left() -> None:
    async with cluster() as (running, gateway):
        running.fleet.live = (NodeInfo("node-2"),)
        await health_when(gateway, Said("ready", 2))
        assert (await only_replica(gateway)).node_id == "node-2"
        assert [order.node_id for order in running.fleet.groups.values()] == ["node-2"]


@pytest.mark.req("OC-POOL-3003", "ORCH-3010")
async def test_a_replica_without_room_says_so_until_there_is_some() -> None:
    running = Cluster()
    room = running.fleet.placed_on

    async def no_room(_group: ReplicaOrder) -> tuple[str, str]:
        return "", "no node has 2 CPUs left"

    running.fleet.placed_on = no_room  # type: ignore[method-assign]
    await running.start()
    running.start_replica()
    gateway = running.gateway()
    try:
        health = await health_when(gateway, Said("pending", 1))
        error = health.last_error
        assert error is not None
        assert (health.live, health.ready) == (True, False)
        assert (error.kind, error.message) == ("unplaced", "no node has 2 CPUs left")
        assert running.fleet.hosts == {}
        running.fleet.placed_on = room  # type: ignore[method-assign]
        health = await health_when(gateway, Said("ready", 1))
        assert health.restarts == 0
    finally:
        await running.close()


# ------------------------------------------------------------------------- engines die


@pytest.mark.req("ORCH-3053", "OC-POOL-3003", "OC-POOL-3010", "OC-POOL-3011")
async def test_an_engine_that_died_is_launched_again_after_the_wait_and_its_last_words_are_kept() -> None:
    async with cluster() as (running, gateway):
        running.adapters[0].exit.set_result(EngineExit(-6, ("Xid 13", "CUDA error: illegal address"), "driver"))
        await until(lambda: len(running.adapters) == 2)
        health = await health_when(gateway, Said("ready", 1))
        error = health.replicas[0].last_error
        assert error is not None
        assert (error.kind, error.stderr) == ("driver", ["Xid 13", "CUDA error: illegal address"])
        assert health.restarts == 1
        assert not running.fleet.hosts["pool-0-1"].done()
        page = (await gateway.metrics()).decode()
        assert 'pool_restarts_total{engine="llamacpp",pool_id="pool",reason="driver"} 1.0' in page
        assert 'driver_resets_total{engine="llamacpp",pool_id="pool"} 1.0' in page
        outcomes = [line for line in page.splitlines() if line.startswith("preload_outcomes_total")]
        assert outcomes == ['preload_outcomes_total{engine="llamacpp",outcome="ready",pool_id="pool"} 2.0']


@pytest.mark.req("ORCH-3039")
async def test_an_engine_that_ran_out_of_gpu_memory_comes_back_with_fewer_slots() -> None:
    async with cluster() as (running, gateway):
        running.adapters[0].exit.set_result(EngineExit(1, ("out of memory",), "vram_oom"))
        await until(lambda: len(running.adapters) == 2)
        health = await health_when(gateway, Said("ready"))
        assert (health.replicas[0].slots_total, running.adapters[1].spec.slots) == (1, 1)


# --------------------------------------------------------------------------- links


@pytest.mark.req("ORCH-3010")
async def test_a_link_that_is_cut_while_a_replica_serves_is_made_again_without_another_engine() -> None:
    # Patient: on a busy machine the link may need longer than the wait after which a replica is made anew.
    patient = replace(RESTART, backoff_min_ms=30_000, backoff_max_ms=30_000)
    async with cluster(restart=patient) as (running, gateway):
        cut = running.scheduler._replicas["pool-0"]
        cut.close()
        await until(lambda: running.scheduler._replicas.get("pool-0", cut) is not cut)
        await health_when(gateway, Said("ready", 1))
        await submit(gateway, "after", 3)
        assert len((await collect(gateway, "after"))[0]) == 3
        assert len(running.adapters) == 1


async def stand_in(running: Cluster, incarnation: int) -> Connection:
    """A connection that says it is replica pool-0 in some incarnation."""

    def nothing(*_: object) -> None:
        pass

    endpoint = await running.locate()
    link = await connect(endpoint, NODE, SECRET, "replica", "pool-0", wire.ToReplica, nothing, nothing)
    link.send(wire.RegisterReplica("pool-0", "pool", endpoint, incarnation))
    link.send(ReplicaLoading("pool-0", "pool", incarnation))
    return link


@pytest.mark.req("ORCH-3010", "ORCH-3053")
async def test_an_earlier_incarnation_that_connects_is_turned_away() -> None:
    async with cluster() as (running, gateway):
        running.fleet.hosts["pool-0-1"].cancel()
        await health_when(gateway, Said("ready", 2))
        live = running.scheduler._replicas["pool-0"]
        stale = await stand_in(running, 1)
        stale.send(ReplicaReady(ReplicaInfo("pool-0", "pool", "llamacpp", "b1", "x", 1, 1, "v1", "cpu-dev", NODE)))
        await until(lambda: stale.closed)
        assert running.scheduler._replicas["pool-0"] is live
        assert (await only_replica(gateway)).phase == "ready"
        await submit(gateway, "after", 3)
        assert len((await collect(gateway, "after"))[0]) == 3
        assert len(running.adapters) == 2


class Clock:
    """The scheduler's clock, which a test can set forward."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def __call__(self) -> int:
        return scheduler_service.time.monotonic_ns() + self.ahead_ns


@pytest.mark.req("ORCH-3010", "ORCH-3018")
async def test_a_replica_that_is_not_heard_of_is_sent_nothing_until_it_is_heard_of_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, running = Clock(), Cluster()
    ttl_ms = 3_600_000
    running.config = replace(running.config, lease=LeasePolicy(ttl_ms, 10 * ttl_ms))
    running.scheduler = SchedulerService(running.config, SECRET, clock=clock)
    monkeypatch.setattr(uplink, "LEASE_INTERVAL_S", 0.01)
    await running.start()
    running.start_replica()
    gateway = running.gateway()
    try:
        await running.ready(gateway)
        renewed = running.scheduler._core.state.pools.members["pool-0"]
        seen_ns = renewed.lease_ns
        await until(lambda: renewed.lease_ns > seen_ns)
        # The replica's loop hangs, as far as its scheduler can see; a task that comes shows the time that passed.
        link = running.scheduler._replicas["pool-0"]
        monkeypatch.setattr(link, "_on_message", lambda *_: None)
        clock.ahead_ns += (ttl_ms + 1) * 10**6
        await submit(gateway, "waits", 3)
        assert (await only_replica(gateway)).phase == "suspended"
        assert (await gateway.status("waits", "acme")).state == "queued"
        monkeypatch.undo()
        assert len((await collect(gateway, "waits"))[0]) == 3
        assert (await only_replica(gateway)).phase == "ready"
        assert len(running.adapters) == 1
    finally:
        await running.close()


@pytest.mark.req("OC-POOL-3001")
async def test_a_scheduler_that_was_restarted_is_told_of_nodes_and_gets_its_replica() -> None:
    running = Cluster()
    await running.start()
    running.start_replica()
    first = running.gateway()
    try:
        await running.ready(first)
        await running.scheduler.close()
        running.scheduler = SchedulerService(running.config, SECRET)
        running.endpoint = await running.scheduler.start(NODE, HOST)
        gateway = running.gateway()
        await running.ready(gateway)
        await submit(gateway, "after", 3)
        assert len((await collect(gateway, "after"))[0]) == 3
        assert sum(not host.done() for host in running.fleet.hosts.values()) == 1
    finally:
        await running.close()
