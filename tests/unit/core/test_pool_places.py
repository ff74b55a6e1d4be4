"""Replicas that have no good place: moved off a node that fails them, given up where their actor never registers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.policies import RestartPolicy
from contracts.pools import (
    DrainRequested,
    FaultKind,
    LaunchEngine,
    NodeInfo,
    OrderReplica,
    ReplicaFaulted,
    ReplicaGone,
    ReplicaOrder,
    ReplicaPlaced,
    ReplicaUnplaced,
    RetireReplica,
)
from contracts.scheduling import RefuseReplica, ReplicaLoading
from orchestrator.core.pools import nodes
from tests.unit.core.core_kit import MS, of, one
from tests.unit.core.pool_kit import Fleet, changes, gpu_pool, pool

N0, N1 = NodeInfo("n0", 1), NodeInfo("n1", 1)
#: Quick, of one length, and never stopped by the breaker.
STEADY = RestartPolicy(100, 100, 0, breaker_failures=1_000)
PLACE: tuple[FaultKind, ...] = ("gpu_lost", "driver", "ecc", "mask", "headroom")
OTHER: tuple[FaultKind, ...] = ("exit", "stuck", "launch", "model", "vram_oom", "host_oom", "xid")


def steady(*fleet_nodes: NodeInfo) -> Fleet:
    fleet = Fleet(gpu_pool(replicas=1, restart=STEADY), nodes=fleet_nodes)
    fleet.come("pool-a-0")
    return fleet


def next_try(fleet: Fleet, kind: FaultKind) -> list[LaunchEngine | OrderReplica]:
    """The launch fails; what its next try is."""
    fleet.fail("pool-a-0", kind)
    commands = fleet.pass_ms(100)
    return [*of(commands, LaunchEngine), *of(commands, OrderReplica)]


# ------------------------------------------------------------------ bad places


@pytest.mark.parametrize("kind", PLACE)
@pytest.mark.req("ORCH-3038", "ORCH-3011", "OC-POOL-3010", "OC-POOL-3020")
def test_after_two_faults_of_its_place_a_replica_is_made_anew_on_another_node(kind: FaultKind) -> None:
    fleet = steady(N0, N1)
    assert next_try(fleet, kind) == [LaunchEngine("set-a", "pool-a-0", 1)]
    fleet.fail("pool-a-0", kind)
    assert not of(fleet.pass_ms(99), OrderReplica), "the backoff holds for a move too"
    commands = fleet.pass_ms(1)
    assert of(commands, RetireReplica) == [RetireReplica("set-a", "pool-a-0", 1)]
    assert one(commands, OrderReplica).order == ReplicaOrder("pool-a-0", 2, "pool-a", "small", "n1", (0,))
    assert commands.index(one(commands, RetireReplica)) < commands.index(one(commands, OrderReplica))
    assert "on node n1 with GPU 0; moved off node n0, whose place failed" in str(commands)
    # The old actor is not wanted any more, and its GPU is free for others.
    assert nodes.holders(fleet.scheduler.state.pools) == {("n1", 0): "pool-a-0"}
    assert "incarnation 1" in one(fleet.tell(ReplicaLoading("pool-a-0", "pool-a", 1)), RefuseReplica).reason
    assert one(fleet.come("pool-a-0"), LaunchEngine).replica_id == "pool-a-0"
    fleet.ready("pool-a-0")
    assert fleet.home_ready() == ["pool-a-0"]


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.req("ORCH-3053")
def test_faults_of_the_engine_or_the_model_move_nothing(kind: FaultKind) -> None:
    fleet = steady(N0, N1)
    for _ in range(5):
        assert isinstance(next_try(fleet, kind)[0], LaunchEngine)


def test_faults_of_the_place_that_are_not_in_a_row_move_nothing() -> None:
    fleet = steady(N0, N1)
    for kind in ("ecc", "exit", "headroom", "model", "mask"):
        assert isinstance(next_try(fleet, kind)[0], LaunchEngine)


def test_faults_of_the_place_count_over_short_service_and_not_over_long() -> None:
    policy = RestartPolicy(100, 100, 0, stable_after_ms=10_000, breaker_failures=1_000)
    for served_ms, moves in ((9_999, True), (10_000, False)):
        fleet = Fleet(gpu_pool(replicas=1, restart=policy), nodes=(N0, N1))
        fleet.come("pool-a-0")
        next_try(fleet, "driver")
        fleet.ready("pool-a-0")
        fleet.pass_ms(served_ms)
        assert isinstance(next_try(fleet, "driver")[0], OrderReplica if moves else LaunchEngine)


@pytest.mark.req("ORCH-3038")
def test_a_gpu_that_reports_errors_again_and_again_is_left_too() -> None:
    """The engine never failed by itself: it was drained for what the GPU told."""
    fleet = steady(N0, N1)
    for _ in range(2):
        fleet.ready("pool-a-0")
        fleet.tell(ReplicaFaulted("pool-a-0", "ecc", "double-bit error"))
        fleet.pass_ms(100)
    assert (fleet.orders["pool-a-0"].incarnation, fleet.orders["pool-a-0"].node_id) == (2, "n1")


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
def test_where_no_other_node_has_room_it_is_tried_where_it_is() -> None:
    fleet = Fleet(
        gpu_pool("pool-a", 1, restart=STEADY),
        gpu_pool("pool-b", 1),
        gpu_pool("pool-c", 1, zone="west"),
        nodes=(N0, N1, NodeInfo("n2", 1, "west"), NodeInfo("n3")),
    )
    for replica_id in fleet.members:
        fleet.come(replica_id)
    for _ in range(4):
        assert isinstance(next_try(fleet, "gpu_lost")[0], LaunchEngine)
    # A node comes that has room: the next try after one more failure is there.
    fleet.see(N0, N1, NodeInfo("n2", 1, "west"), NodeInfo("n3"), NodeInfo("n4", 1))
    (moved,) = next_try(fleet, "gpu_lost")
    assert isinstance(moved, OrderReplica)
    assert moved.order.node_id == "n4"


def test_an_actor_that_is_gone_as_well_is_not_made_where_the_place_is_bad() -> None:
    fleet = steady(N0, N1)
    next_try(fleet, "headroom")
    fleet.lose("pool-a-0")
    assert not fleet.tell(ReplicaGone("pool-a-0", 1, "actor", "killed"))
    assert one(fleet.pass_ms(100), OrderReplica).order.node_id == "n0"
    fleet.come("pool-a-0")
    fleet.fail("pool-a-0", "headroom")
    fleet.lose("pool-a-0")
    assert one(fleet.pass_ms(100), OrderReplica).order == ReplicaOrder("pool-a-0", 3, "pool-a", "small", "n1", (0,))


@pytest.mark.req("ORCH-3053", "OC-POOL-3011")
def test_with_the_breaker_open_a_move_is_the_one_try() -> None:
    fleet = Fleet(
        gpu_pool(replicas=2, restart=RestartPolicy(100, 8_000, 0, breaker_failures=3)),
        nodes=(N0, N1, NodeInfo("n2", 1)),
    )
    for replica_id in fleet.members:
        fleet.come(replica_id)
    for _ in range(2):
        fleet.fail("pool-a-0", "gpu_lost")
        fleet.fail("pool-a-1", "gpu_lost")
        if fleet.member("pool-a-0").failures == 1:
            fleet.pass_ms(100)
    assert fleet.pool().breaker_open
    commands = fleet.pass_ms(8_000)
    assert [each.order.replica_id for each in of(commands, OrderReplica)] == ["pool-a-0"]
    assert not of(commands, LaunchEngine)
    assert [each.replica_id for each in of(fleet.come("pool-a-0"), LaunchEngine)] == ["pool-a-0"]
    fleet.ready("pool-a-0")
    # It came up elsewhere: the other one goes too, to the node that was left.
    assert fleet.orders["pool-a-1"].node_id == "n0"


@pytest.mark.req("ORCH-3011", "ORCH-3053", "OC-POOL-3020")
@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(PLACE + OTHER), max_size=12),
    sizes=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    held=st.integers(0, 2),
)
def test_a_replica_moves_exactly_when_its_place_failed_twice_and_another_has_room(
    kinds: list[FaultKind], sizes: list[int], held: int
) -> None:
    """Held against a model of its own: counts of faults, and nodes whose GPU 0 nobody else has."""
    sizes = [1, *sizes]
    fleet = Fleet(
        gpu_pool(replicas=1, restart=STEADY),
        gpu_pool("other", held, restart=STEADY),
        nodes=tuple(NodeInfo(f"n{n}", size) for n, size in enumerate(sizes)),
    )
    others = {order.node_id for order in fleet.orders.values() if order.pool_id == "other"}
    free = {f"n{n}" for n, size in enumerate(sizes) if size} - others
    fleet.come("pool-a-0")
    in_row, incarnation = 0, 1
    for kind in kinds:
        in_row = in_row + 1 if kind in PLACE else 0
        stood = fleet.orders["pool-a-0"].node_id
        (tried,) = next_try(fleet, kind)
        if in_row < 2 or free == {stood}:
            assert isinstance(tried, LaunchEngine)
            continue
        assert isinstance(tried, OrderReplica)
        in_row, incarnation = 0, incarnation + 1
        assert tried.order.incarnation == incarnation
        assert tried.order.node_id in free - {stood}
        assert one(fleet.come("pool-a-0"), LaunchEngine).replica_id == "pool-a-0"
    assert fleet.member("pool-a-0").restarts == len(kinds)


# ------------------------------------------------------------------ actors that never register


@pytest.mark.req("ORCH-3002", "ORCH-3018", "OC-POOL-3001")
def test_an_actor_that_never_registers_counts_as_gone() -> None:
    fleet = Fleet(pool(replicas=1, restart=RestartPolicy(500, 8_000, 0, breaker_failures=2)))
    assert not changes(fleet.pass_ms(119_999))
    commands = fleet.pass_ms(1)
    assert one(commands, RetireReplica) == RetireReplica("set-a", "pool-a-0", 1)
    assert changes(commands) == [("restart", "pool-a-0")]
    fault = fleet.pool().fault
    assert fault is not None
    assert (fault.kind, fault.reason) == ("actor", "did not register within 120 s")
    assert fleet.scheduler.readiness() == {"pool-a": "unavailable: did not register within 120 s"}
    assert fleet.scheduler.orders() == ()
    assert "incarnation 1" in one(fleet.come("pool-a-0"), RefuseReplica).reason
    assert one(fleet.pass_ms(500), OrderReplica).order.incarnation == 2
    # The next one neither: a pool whose breaker is open goes on trying.
    assert ("breaker_open", "pool-a-0") in changes(fleet.pass_ms(120_000))
    assert one(fleet.pass_ms(8_000), OrderReplica).order.incarnation == 3
    fleet.up("pool-a-0")
    assert fleet.home_ready() == ["pool-a-0"]


@pytest.mark.req("ORCH-3018")
def test_the_time_to_register_begins_when_there_is_room() -> None:
    fleet = Fleet(pool(replicas=1))
    fleet.pass_ms(119_000)
    fleet.tell(ReplicaPlaced("pool-a-0", 1, "n0"))
    assert not changes(fleet.pass_ms(119_999))
    assert changes(fleet.pass_ms(1)) == [("restart", "pool-a-0")]


@pytest.mark.req("ORCH-3018", "ORCH-3011")
def test_what_has_no_room_waits_for_ever() -> None:
    fleet = Fleet(gpu_pool("pool-a", 1), pool("pool-b", 1), nodes=(NodeInfo("n0"),))
    fleet.tell(ReplicaUnplaced("pool-b-0", 1, "no 4 CPUs are free"))
    assert not changes(fleet.pass_ms(7 * 24 * 3_600_000))
    assert {fleet.member(replica_id).state for replica_id in fleet.members} == {"pending"}
    assert fleet.scheduler.state.timers.armed_at(" pools") is None
    fleet.tell(ReplicaPlaced("pool-b-0", 1, "n0"))
    assert changes(fleet.pass_ms(120_000)) == [("restart", "pool-b-0")]


@pytest.mark.req("ORCH-3018")
def test_a_node_that_turns_out_to_be_gone_explains_the_silence() -> None:
    fleet = Fleet(gpu_pool(replicas=1), nodes=(N0, N1))
    fleet.pass_ms(120_000)
    assert fleet.pool().failures == 1
    fleet.see(N1)
    assert (fleet.pool().failures, fleet.member("pool-a-0").failures) == (0, 0)
    assert one(fleet.pass_ms(500), OrderReplica).order.node_id == "n1"
    assert fleet.member("pool-a-0").ordered_ns == fleet.now_ms * MS


@pytest.mark.req("ORCH-3008")
def test_a_replica_without_a_node_is_ordered_there_once_a_gpu_is_let_go() -> None:
    fleet = Fleet(gpu_pool("pool-a", 1), gpu_pool("pool-b", 1), nodes=(NodeInfo("n0", gpus=1),))
    assert (fleet.member("pool-b-0").state, fleet.member("pool-b-0").node_id) == ("pending", "")
    order = one(fleet.tell(DrainRequested(1, "pool-a", 0)), OrderReplica).order
    assert (order.replica_id, order.node_id, order.devices) == ("pool-b-0", "n0", (0,))
    assert fleet.member("pool-b-0").state == "ordered"
