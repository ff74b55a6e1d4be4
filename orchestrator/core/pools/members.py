"""Replicas of a pool are ordered, drained and retired (ORCH-3002, ORCH-3008, ORCH-3011)."""

from contracts.pools import FaultKind, NotePool, OrderReplica, PoolChange, ReplicaOrder, RetireReplica
from orchestrator.core import replicas
from orchestrator.core.placement import Replica
from orchestrator.core.pools import nodes
from orchestrator.core.pools.records import Generation, Member, Pool
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.state import State


def order_new(state: State, pool: Pool, generation: Generation) -> Member:
    """Order one more replica, under an id that no other had."""
    policy = pool.policy
    member = Member(f"{policy.pool_id}-{pool.ordinal}", pool, generation, policy.slots)
    pool.ordinal += 1
    generation.members[member.replica_id] = member
    state.pools.members[member.replica_id] = member
    order(state, member)
    return member


def order(state: State, member: Member) -> None:
    """Have a replica's actor made, on the best node that has room for it now, off a node whose place for it is bad.

    Where none has, the order goes out without a node, so that the cluster's autoscaler is asked for one.
    """
    pools = state.pools
    better = nodes.elsewhere(pools, member)
    moved = f"; moved off node {member.node_id}, whose place failed" if better is not None else ""
    node_id = better or nodes.place(pools, member)
    if node_id != member.node_id:
        member.place_failures = 0
        leave_node(state, member)
    member.state = "pending"
    if not pools.nodes_known:
        member.unplaced = nodes.unplaced(pools, member)
        return
    if node_id is None:
        member.unplaced = nodes.unplaced(pools, member)
    else:
        stand_on(state, member, node_id)
    member.incarnation += 1
    member.is_ordered = True
    where = (_where(member) or member.unplaced) + moved
    note(state, member, "ordered", f"model {member.generation.model_ref}, {where}")
    state.out.append(OrderReplica(set_id_of(member), order_of(member)))
    state.pools.touched = True


def leave_node(state: State, member: Member) -> None:
    """A replica holds no GPUs any more: those that wait for room are tried again."""
    if member.devices:
        state.pools.room_freed = True
    member.node_id, member.devices = "", ()


def stand_on(state: State, member: Member, node_id: str) -> None:
    """A node was found for a replica: it holds its GPUs there from now on, and its actor is awaited."""
    member.node_id = node_id
    member.devices = nodes.mask_of(member.pool.policy)
    member.unplaced = ""
    member.state = "ordered"
    member.ordered_ns = state.now_ns


def order_of(member: Member) -> ReplicaOrder:
    """The order as the manager is told it."""
    policy = member.pool.policy
    return ReplicaOrder(
        member.replica_id,
        member.incarnation,
        policy.pool_id,
        member.generation.model_ref,
        member.node_id,
        nodes.mask_of(policy),
    )


def give_up_actor(state: State, member: Member) -> None:
    """End the present incarnation of a replica; a later order makes another."""
    member.is_ordered = False
    state.out.append(RetireReplica(set_id_of(member), member.replica_id, member.incarnation))


def retire(state: State, member: Member, reason: str) -> None:
    """End a replica for good; attempts that it still runs are lost."""
    pools = state.pools
    replica = state.replicas.get(member.replica_id)
    # Out of the tables first, so that nothing that follows from its end comes back to it.
    del pools.members[member.replica_id]
    del member.generation.members[member.replica_id]
    pools.draining.pop(member.replica_id, None)
    pools.room_freed = pools.room_freed or bool(member.devices)
    member.state = "retired"
    if replica is not None:
        replicas.remove(state, replica, reason)
    state.is_back(member.replica_id)
    if member.incarnation:
        give_up_actor(state, member)
    note(state, member, "retired", reason)
    pools.touched = True


def drain(state: State, member: Member, until_ns: int, *, relaunch: bool = False) -> None:
    """Let a replica finish what it runs, until `until_ns` at most; then it is retired, or given a new engine.

    Asked for twice, the earlier end and the retirement win.
    """
    pools = state.pools
    if member.drain_until_ns is None:
        member.drain_until_ns = until_ns
        member.relaunch = relaunch
        pools.draining[member.replica_id] = member
    else:
        if not member.is_stopping:
            member.drain_until_ns = min(member.drain_until_ns, until_ns)
        member.relaunch = member.relaunch and relaunch
    replica = state.replicas.get(member.replica_id)
    if replica is not None:
        replicas.set_aside(state, replica)
    pools.touched = True


def end_drain(state: State, member: Member) -> None:
    """A replica does not drain any more."""
    state.pools.draining.pop(member.replica_id, None)
    member.drain_until_ns = None
    member.is_stopping = False
    member.relaunch = False


def reconcile(state: State, pool: Pool) -> None:
    """Let the active generation have as many replicas as are desired; those that drain to go do not count.

    While a replica is awaited nobody knows which of them are idle: after that it is looked at again.
    """
    if pool.drained or pool.drain_until_ns is not None or not state.pools.nodes_known:
        return
    staying = [each for each in pool.active.members.values() if each.drain_until_ns is None or each.relaunch]
    for _ in range(pool.desired - len(staying)):
        order_new(state, pool, pool.active)
    surplus = len(staying) - pool.desired
    if surplus <= 0 or any(each.replica_id in state.awaited for each in staying):
        return
    # Those that serve nothing first, then the least busy, and of equals the newest.
    ranked = [(_load(state, member), -age, member.replica_id) for age, member in enumerate(staying)]
    ranked.sort()
    until_ns = state.now_ns + pool.policy.drain_ms * NS_PER_MS
    for _, _, replica_id in ranked[:surplus]:
        drain(state, state.pools.members[replica_id], until_ns)


def _load(state: State, member: Member) -> int:
    """Attempts that a replica runs; -1 while it is not up."""
    replica = state.replicas.get(member.replica_id)
    if replica is None or member.state != "ready":
        return -1
    return len(replica.busy)


def up(state: State, member: Member) -> Replica | None:
    """The registered replica of a member, if its engine is up."""
    replica = state.replicas.get(member.replica_id)
    if replica is None or replica.state not in ("ready", "aside"):
        return None
    return replica


def set_id_of(member: Member) -> str:
    """The replica set that a member's generation serves."""
    return member.generation.home.policy.set_id


def note(state: State, member: Member, change: PoolChange, reason: str, kind: FaultKind | None = None) -> None:
    """Have a decision about a replica logged and counted."""
    state.out.append(NotePool(set_id_of(member), member.pool.policy.pool_id, change, reason, member.replica_id, kind))


def _where(member: Member) -> str:
    if not member.node_id:
        return ""
    gpus = ", ".join([str(index) for index in member.devices])
    return f"on node {member.node_id}" + (f" with GPU {gpus}" if gpus else "")
