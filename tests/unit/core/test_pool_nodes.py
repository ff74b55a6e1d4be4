"""Where replicas are ordered: masks, zones, spread, and GPUs that are held once."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.pools import NodeInfo, NodesSeen, OrderReplica, ReplicaPlaced, ReplicaUnplaced, RetireReplica
from orchestrator.core.pools import members, nodes
from orchestrator.core.pools.records import Member
from orchestrator.core.state import State
from tests.unit.core.core_kit import Core, of, one, replica_set
from tests.unit.core.pool_kit import Fleet, changes, gpu_pool, pool

N0, N1, N2 = NodeInfo("n0", 2, "east"), NodeInfo("n1", 2, "east"), NodeInfo("n2", 2, "west")


def placed(fleet: Fleet) -> dict[str, str]:
    return {replica_id: order.node_id for replica_id, order in fleet.orders.items()}


@pytest.mark.req("ORCH-3008", "ORCH-3011")
def test_replicas_are_spread_over_zones_then_nodes() -> None:
    fleet = Fleet(gpu_pool(replicas=3), nodes=(N2, N1, N0))
    assert placed(fleet) == {"pool-a-0": "n0", "pool-a-1": "n2", "pool-a-2": "n1"}
    assert {order.devices for order in fleet.orders.values()} == {(0,)}


@pytest.mark.req("ORCH-3008")
def test_among_equals_the_node_with_fewer_gpus_held_is_taken() -> None:
    fleet = Fleet(gpu_pool("pool-a", 1, ("0",)), gpu_pool("pool-b", 1, ("1",)), nodes=(N0, N1))
    assert placed(fleet) == {"pool-a-0": "n0", "pool-b-0": "n1"}


@pytest.mark.req("ORCH-3011", "OC-POOL-3012", "OC-POOL-3020")
def test_without_room_the_order_names_no_node_and_says_why() -> None:
    fleet = Fleet(gpu_pool(replicas=2, devices=("0", "1")), gpu_pool("big", 1, ("3",)), nodes=(N0,))
    assert placed(fleet) == {"pool-a-0": "n0", "pool-a-1": "", "big-0": ""}
    assert fleet.orders["pool-a-1"].devices == (0, 1)
    held, absent = fleet.member("pool-a-1"), fleet.member("big-0")
    assert held.state == absent.state == "pending"
    assert held.unplaced == "pool pool-a needs GPU 0, 1 of one node: GPU 0 of node n0 is held by pool-a-0"
    assert absent.unplaced == "pool big needs GPU 3 of one node: node n0 has no GPU 3, only 2 in all"


def test_only_a_few_nodes_are_named() -> None:
    fleet = Fleet(gpu_pool(replicas=1, devices=("9",)), nodes=tuple(NodeInfo(f"n{n}", 1) for n in range(9)))
    assert fleet.member("pool-a-0").unplaced.endswith("node n3 has no GPU 9, only 1 in all; and 5 more")


@pytest.mark.req("ORCH-3008")
def test_a_zone_binds() -> None:
    fleet = Fleet(pool(replicas=1, zone="west"), nodes=(N0, N2))
    assert placed(fleet) == {"pool-a-0": "n2"}
    elsewhere = Fleet(pool(replicas=1, zone="west"), nodes=(N0,))
    assert "needs a node in zone west: node n0 is in zone 'east'" in elsewhere.member("pool-a-0").unplaced


@pytest.mark.req("OC-POOL-3012")
def test_cpu_pools_go_anywhere_and_hold_no_gpu() -> None:
    fleet = Fleet(pool(replicas=3, devices=("0",)), nodes=(NodeInfo("n0"),))
    assert set(placed(fleet).values()) == {"n0"}
    assert {order.devices for order in fleet.orders.values()} == {()}


def test_a_mask_is_made_of_indices() -> None:
    with pytest.raises(ValueError, match="pool-a: devices must be GPU indices"):
        nodes.mask_of(gpu_pool(devices=("gpu0",)))


@pytest.mark.req("ORCH-3011")
def test_what_had_no_room_is_ordered_anew_when_a_node_comes() -> None:
    fleet = Fleet(gpu_pool(replicas=2), nodes=(N0,))
    fleet.see(N0)
    assert fleet.orders["pool-a-1"].incarnation == 1
    order = one(fleet.see(N0, N1), OrderReplica).order
    assert (order.replica_id, order.incarnation, order.node_id) == ("pool-a-1", 2, "n1")
    fleet.up("pool-a-1")
    assert fleet.home_ready() == ["pool-a-1"]


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
def test_a_place_that_ray_found_is_taken_if_the_mask_is_free_there() -> None:
    fleet = Fleet(gpu_pool(replicas=1), nodes=())
    fleet.scheduler.state.pools.nodes["n7"] = NodeInfo("n7", 1)
    assert not of(fleet.tell(ReplicaPlaced("pool-a-0", 1, "n7")), RetireReplica)
    member = fleet.member("pool-a-0")
    assert (member.node_id, member.devices, member.unplaced) == ("n7", (0,), "")
    fleet.up("pool-a-0")
    assert fleet.home_ready() == ["pool-a-0"]


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
@pytest.mark.parametrize(("node_id", "named"), [("n0", "is held by pool-a-0"), ("n5", "not known")])
def test_a_place_that_the_mask_forbids_is_given_back(node_id: str, named: str) -> None:
    fleet = Fleet(gpu_pool(replicas=2), nodes=(N0,))
    commands = fleet.tell(ReplicaPlaced("pool-a-1", 1, node_id))
    assert one(commands, RetireReplica) == RetireReplica("set-a", "pool-a-1", 1)
    assert changes(commands) == [("restart", "pool-a-1")]
    fault = fleet.member("pool-a-1").fault
    assert fault is not None
    assert fault.kind == "mask"
    assert named in fault.reason
    # That is not the pool's launches failing, but it is not tried at full speed either.
    assert fleet.pool().failures == 0
    assert not of(fleet.pass_ms(499), OrderReplica)
    assert one(fleet.pass_ms(1), OrderReplica).order.incarnation == 2


def test_a_replica_that_registers_before_its_place_is_known_waits_for_it() -> None:
    fleet = Fleet(gpu_pool(replicas=2), nodes=(N0,))
    fleet.come("pool-a-1")
    assert fleet.launches == []
    fleet.scheduler.state.pools.nodes["n1"] = N1
    fleet.tell(ReplicaPlaced("pool-a-1", 1, "n1"))
    assert [launch[1] for launch in fleet.launches] == ["pool-a-1"]


def test_why_ray_has_no_room_is_kept() -> None:
    fleet = Fleet(pool(replicas=1))
    fleet.tell(ReplicaUnplaced("pool-a-0", 1, "no 4 CPUs are free"))
    member = fleet.member("pool-a-0")
    assert (member.state, member.unplaced) == ("pending", "no 4 CPUs are free")
    fleet.tell(ReplicaPlaced("pool-a-0", 1, "n0"))
    assert (member.state, member.unplaced) == ("ordered", "")


@pytest.mark.req("ORCH-3018")
def test_a_replica_moves_off_a_node_that_is_gone_and_that_is_no_failure() -> None:
    fleet = Fleet(gpu_pool(replicas=2), nodes=(N0, N1))
    fleet.up("pool-a-0", "pool-a-1")
    assert changes(fleet.see(N1, N2)) == [("restart", "pool-a-0")]
    assert fleet.home_ready() == ["pool-a-1"]
    assert one(fleet.pass_ms(500), OrderReplica).order.node_id == "n2"
    assert (fleet.pool().failures, fleet.member("pool-a-0").failures) == (0, 0)


@pytest.mark.req("ORCH-3018")
def test_a_lost_link_turns_out_to_be_a_lost_node() -> None:
    fleet = Fleet(gpu_pool(replicas=1), nodes=(N0, N1))
    fleet.up("pool-a-0")
    fleet.lose("pool-a-0")
    assert fleet.pool().failures == 1
    fleet.see(N1)
    assert (fleet.pool().failures, fleet.member("pool-a-0").failures) == (0, 0)
    assert fleet.member("pool-a-0").restarts == 1
    assert one(fleet.pass_ms(500), OrderReplica).order.node_id == "n1"


@pytest.mark.req("ORCH-3018", "ORCH-3011")
def test_when_no_node_is_left_everything_waits_for_one() -> None:
    fleet = Fleet(gpu_pool(replicas=2), nodes=(N0, N1))
    fleet.up("pool-a-0")
    fleet.submit("t")
    fleet.tell(ReplicaUnplaced("pool-a-1", 1, "no 4 CPUs are free"))
    assert changes(fleet.see()) == [("restart", "pool-a-0"), ("restart", "pool-a-1")]
    assert fleet.state_of("t") == "queued"
    orders = of(fleet.pass_ms(500), OrderReplica)
    assert [(each.order.replica_id, each.order.node_id) for each in orders] == [("pool-a-0", ""), ("pool-a-1", "")]
    assert fleet.scheduler.readiness() == {"pool-a": "unavailable: pool pool-a: no node is known"}
    assert not fleet.see()
    fleet.see(N0, N1)
    assert placed(fleet) == {"pool-a-0": "n0", "pool-a-1": "n1"}
    fleet.up("pool-a-0", "pool-a-1")
    assert fleet.home_ready() == ["pool-a-0", "pool-a-1"]
    assert fleet.state_of("t") == "running"
    assert (fleet.pool().failures, fleet.member("pool-a-0").failures) == (0, 0)


def test_a_manager_that_sees_no_node_at_first_orders_all_the_same() -> None:
    fleet = Fleet(gpu_pool(replicas=1), nodes=())
    assert placed(fleet) == {"pool-a-0": ""}
    assert fleet.scheduler.readiness() == {"pool-a": "unavailable: pool pool-a: no node is known"}
    assert one(fleet.see(N0), OrderReplica).order.node_id == "n0"


@pytest.mark.req("ORCH-3018", "ORCH-3011")
def test_another_manager_that_knows_of_fewer_nodes_moves_only_what_stood_on_the_others() -> None:
    fleet = Fleet(gpu_pool(replicas=3), nodes=(N0, N1, N2))
    fleet.up("pool-a-0", "pool-a-1", "pool-a-2")
    fleet.submit("t")
    running = fleet.member("pool-a-0")
    commands = fleet.see(N0, N2)
    assert changes(commands) == [("restart", "pool-a-2")]
    assert fleet.state_of("t") == "running"
    assert (running.node_id, running.incarnation) == ("n0", 1)
    # GPU 0 of both nodes that are left is held.
    order = one(fleet.pass_ms(500), OrderReplica).order
    assert (order.replica_id, order.incarnation, order.node_id) == ("pool-a-2", 2, "")
    # The rest of the nodes follows: it has its place back, the others stay.
    assert [each.order.node_id for each in of(fleet.see(N0, N1, N2), OrderReplica)] == ["n1"]
    fleet.up("pool-a-2")
    assert fleet.state_of("t") == "running"
    assert fleet.home_ready() == ["pool-a-0", "pool-a-1", "pool-a-2"]


def test_orders_before_nodes_are_known_wait_for_them() -> None:
    core = Core(replica_set(pools=(pool(replicas=1),)))
    state = core.scheduler.state
    own = state.pools.by_id["pool-a"]
    member = members.order_new(state, own, own.active)
    assert (member.state, member.unplaced) == ("pending", "pool pool-a: no node is known")
    commands = core.tell(NodesSeen((NodeInfo("n0"),)))
    assert [command.order.replica_id for command in of(commands, OrderReplica)] == ["pool-a-0"]


def replaced(state: State, member: Member) -> None:
    members.retire(state, member, "test")
    members.reconcile(state, member.pool)


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_gpu_is_held_once_over_any_sequence(data: st.DataObject) -> None:
    """Nodes come and go, Ray places what had no room anywhere it likes, replicas are retired."""
    fleet = Fleet(
        gpu_pool("a", 3, ("0",)), gpu_pool("b", 2, ("0", "1")), gpu_pool("c", 2, ("1",), zone="z1"), nodes=(N0,)
    )
    state = fleet.scheduler.state
    for _ in range(data.draw(st.integers(1, 12))):
        move = data.draw(st.sampled_from(["nodes", "place", "lose", "retire", "wait"]))
        replica_id = data.draw(st.sampled_from(fleet.members))
        member = fleet.member(replica_id)
        if move == "nodes":
            names = data.draw(st.lists(st.sampled_from("klmno"), unique=True))
            fleet.see(*[NodeInfo(name, "klmno".index(name) % 4, f"z{ord(name) % 2}") for name in names])
        elif move == "place":
            node_id = data.draw(st.sampled_from("klmno"))
            fleet.tell(ReplicaPlaced(replica_id, member.incarnation, node_id))
        elif move == "lose":
            fleet.come(replica_id)
            fleet.lose(replica_id)
        elif move == "retire":
            fleet.during(partial(replaced, state, member))
        else:
            fleet.pass_ms(data.draw(st.sampled_from([1, 600, 5_000])))
        held = nodes.holders(state.pools)
        assert len(held) == sum(len(each.devices) for each in state.pools.members.values())
        for each in state.pools.members.values():
            node = state.pools.nodes.get(each.node_id)
            assert not each.node_id or node is not None
            assert node is None or all(index < node.gpus for index in each.devices)
