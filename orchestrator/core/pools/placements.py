"""What the pool manager tells: nodes that come and go, and where replicas found room (ORCH-3008, ORCH-3011).

A report of another incarnation than the one that is ordered is late, not wrong: it is dropped. An actor that has a
node and is never heard of counts as gone after a while, so that a pool does not wait for it for ever.
"""

from typing import Final

from contracts.pools import FaultKind, NodeInfo, NodesSeen, ReplicaGone, ReplicaPlaced, ReplicaUnplaced
from orchestrator.core import replicas
from orchestrator.core.pools import members, nodes, restarts
from orchestrator.core.pools.records import Member
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.state import State

#: How long an actor that has a node may take to register, from its order or from when Ray gave it room.
ORDER_TIMEOUT_NS: Final = 120_000 * NS_PER_MS


def _ordered(state: State, replica_id: str, incarnation: int) -> Member | None:
    member = state.pools.members.get(replica_id)
    if member is None or not member.is_ordered or member.incarnation != incarnation:
        return None
    return member


def nodes_seen(state: State, event: NodesSeen) -> None:
    """Replicas on nodes that are gone are made anew elsewhere; those that had no room are tried again."""
    pools = state.pools
    first = not pools.nodes_known
    pools.nodes_known = True
    pools.nodes = {node.node_id: node for node in sorted(event.nodes, key=_node_id)}
    for member in list(pools.members.values()):
        if member.node_id and member.node_id not in pools.nodes:
            _gone(state, member, "node", f"node {member.node_id} is gone")
    for member in list(pools.members.values()):
        if member.state == "pending":
            _try_again(state, member)
    if first:
        for pool in pools.by_id.values():
            members.reconcile(state, pool)


def retry(state: State) -> None:
    """Try replicas without a node again once others let go of their GPUs."""
    pools = state.pools
    if not pools.room_freed:
        return
    pools.room_freed = False
    for member in list(pools.members.values()):
        if member.state == "pending" and not member.node_id:
            _try_again(state, member)


def _node_id(node: NodeInfo) -> str:
    return node.node_id


def _try_again(state: State, member: Member) -> None:
    """Order a replica anew that has no room where it is, if there is room elsewhere now."""
    node_id = nodes.place(state.pools, member)
    if not member.is_ordered or (node_id is not None and node_id != member.node_id):
        replica = state.replicas.get(member.replica_id)
        if replica is not None:
            replicas.remove(state, replica, "it is placed anew")
        members.order(state, member)
    elif not member.node_id:
        member.unplaced = nodes.unplaced(state.pools, member)


def placed(state: State, event: ReplicaPlaced) -> None:
    """Ray found room: where it was ordered, or, for one that was ordered without a node, anywhere."""
    member = _ordered(state, event.replica_id, event.incarnation)
    if member is None or member.state not in ("pending", "ordered"):
        return
    if event.node_id != member.node_id:
        node = state.pools.nodes.get(event.node_id)
        held = nodes.holders(state.pools, member)
        policy = member.pool.policy
        misfit = f"node {event.node_id} is not known" if node is None else nodes.misfit(policy, node, held)
        if misfit is not None:
            _misplaced(state, member, misfit)
            return
        members.leave_node(state, member)
    members.stand_on(state, member, event.node_id)
    if member.replica_id in state.replicas:
        member.state = "waiting"
        member.launch_ns = state.now_ns


def _misplaced(state: State, member: Member, misfit: str) -> None:
    replica = state.replicas.get(member.replica_id)
    if replica is not None:
        replicas.remove(state, replica, misfit)
    members.give_up_actor(state, member)
    restarts.displaced(state, member, "mask", f"it was placed where it cannot be: {misfit}")


def unplaced(state: State, event: ReplicaUnplaced) -> None:
    """Ray has no room where a replica was ordered: it waits there, and is tried again when nodes change."""
    member = _ordered(state, event.replica_id, event.incarnation)
    if member is not None and member.state in ("pending", "ordered"):
        member.state = "pending"
        # Why no known node will do is known here; Ray only tells that it looks for another.
        if member.node_id:
            member.unplaced = event.reason


def gone(state: State, event: ReplicaGone) -> None:
    """The actor of a replica is dead, or its node is."""
    member = _ordered(state, event.replica_id, event.incarnation)
    if member is not None:
        _gone(state, member, event.kind, event.reason)


def _gone(state: State, member: Member, kind: FaultKind, reason: str) -> None:
    """Another incarnation is ordered after the wait."""
    replica = state.replicas.get(member.replica_id)
    state.is_back(member.replica_id)
    if replica is None and member.state == "waiting":
        # Its connection ended first, and that was counted.
        restarts.explained(state, member, kind, reason)
        return
    if replica is not None:
        replicas.remove(state, replica, reason, kind)
    member.is_ordered = False
    if kind == "node":
        restarts.displaced(state, member, kind, reason)
    else:
        restarts.failed(state, member, kind, reason)


# ------------------------------------------------------------------------ actors that never register


def next_due_ns(state: State) -> int | None:
    """When the next actor that is awaited counts as gone; one that has no room may wait for ever."""
    earliest_ns: int | None = None
    for member in state.pools.members.values():
        if member.state == "ordered" and (earliest_ns is None or member.ordered_ns < earliest_ns):
            earliest_ns = member.ordered_ns
    return None if earliest_ns is None else earliest_ns + ORDER_TIMEOUT_NS


def due(state: State) -> None:
    """Give up actors that did not register in time."""
    reason = f"did not register within {ORDER_TIMEOUT_NS // (1000 * NS_PER_MS)} s"
    for member in list(state.pools.members.values()):
        if member.state == "ordered" and state.now_ns - member.ordered_ns >= ORDER_TIMEOUT_NS:
            members.give_up_actor(state, member)
            state.is_back(member.replica_id)
            restarts.failed(state, member, "actor", reason)
