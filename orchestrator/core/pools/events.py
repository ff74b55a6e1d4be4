"""What is told of managed pools and asked of them, and what their replicas tell (ORCH-3010, ORCH-3018, ORCH-3038)."""

from typing import Final

from contracts.pools import (
    DrainRequested,
    LeaseRenewed,
    NodesSeen,
    PromoteRequested,
    ReloadRequested,
    ReplicaFaulted,
    ReplicaGone,
    ReplicaPlaced,
    ReplicaUnplaced,
    RollbackRequested,
)
from contracts.scheduling import AnyEvent, RefuseReplica, ReplicaLoading, ReplicaLost, ReplicaReady, ReplicaUnready
from orchestrator.core import adoption, replicas
from orchestrator.core.pools import drains, leases, members, placements, reloads, restarts
from orchestrator.core.pools.records import Member
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.state import State

#: Longest time that a replica whose GPU or driver told of an error may finish its work (ORCH-3038).
FAULT_DRAIN_MS_MAX: Final = 30_000


def handled(state: State, event: AnyEvent) -> bool:
    """Take in an event about managed pools; false if it is about something else."""
    if isinstance(event, LeaseRenewed):
        member = state.pools.members.get(event.replica_id)
        if member is not None and event.replica_id in state.replicas:
            leases.heard(state, member)
        return True
    if not (_replica_told(state, event) or _manager_told(state, event) or _requested(state, event)):
        return False
    state.pools.touched = True
    return True


def _replica_told(state: State, event: AnyEvent) -> bool:
    if isinstance(event, ReplicaLoading):
        return _loading(state, event)
    if isinstance(event, ReplicaReady):
        return _ready(state, event)
    if isinstance(event, ReplicaUnready):
        return _unready(state, event)
    if isinstance(event, ReplicaLost):
        return _lost(state, event)
    if isinstance(event, ReplicaFaulted):
        return _faulted(state, event)
    return False


def _manager_told(state: State, event: AnyEvent) -> bool:
    if isinstance(event, NodesSeen):
        placements.nodes_seen(state, event)
    elif isinstance(event, ReplicaPlaced):
        placements.placed(state, event)
    elif isinstance(event, ReplicaUnplaced):
        placements.unplaced(state, event)
    elif isinstance(event, ReplicaGone):
        placements.gone(state, event)
    else:
        return False
    return True


def _requested(state: State, event: AnyEvent) -> bool:
    if isinstance(event, DrainRequested):
        drains.requested(state, event)
    elif isinstance(event, ReloadRequested):
        reloads.requested(state, event)
    elif isinstance(event, PromoteRequested):
        reloads.promote(state, event)
    elif isinstance(event, RollbackRequested):
        reloads.rollback(state, event)
    else:
        return False
    return True


def _loading(state: State, event: ReplicaLoading) -> bool:
    """A replica registers and waits to be told to launch, or confirms that it launches."""
    member = state.pools.members.get(event.replica_id)
    if member is None and event.pool_id not in state.pools.by_id:
        return False
    state.is_back(event.replica_id)
    reason = _stranger(member, event.replica_id, event.pool_id)
    if reason is None and member is not None and not (member.is_ordered and member.incarnation == event.incarnation):
        reason = _unwanted(event.replica_id, event.incarnation)
    if reason is not None or member is None:
        state.out.append(RefuseReplica("", event.replica_id, reason or ""))
        return True
    replica = state.replicas.get(event.replica_id)
    if replica is None:
        replica = replicas.register(state, event.replica_id, event.pool_id, member.generation.home)
    leases.heard(state, member)
    if member.state == "ordered":
        # The first launch of an actor waits for nothing; one whose link was cut waits on as it did.
        member.state = "waiting"
        member.launch_ns = state.now_ns
    elif member.state == "ready":
        replicas.take_down(state, replica, "the engine is loading again")
        restarts.failed(state, member, "exit", "the engine is loading again")
    adoption.take_ends(state, replica, event.ended)
    return True


def _ready(state: State, event: ReplicaReady) -> bool:
    """A replica serves: one that was told to launch, or one whose link was cut and that went on (ORCH-3009)."""
    info = event.replica
    member = state.pools.members.get(info.replica_id)
    if member is None and info.pool_id not in state.pools.by_id:
        return False
    reason = _stranger(member, info.replica_id, info.pool_id)
    if reason is None and member is not None:
        reason = _unexpected(state, member, event.incarnation)
    if reason is not None or member is None:
        state.out.append(RefuseReplica("", info.replica_id, reason or ""))
    else:
        _serves(state, member, event)
    state.is_back(info.replica_id)
    return True


def _serves(state: State, member: Member, event: ReplicaReady) -> None:
    info = event.replica
    replica = state.replicas.get(info.replica_id)
    if replica is None:
        replica = replicas.register(state, info.replica_id, info.pool_id, member.generation.home)
        restarts.returned(member)
    leases.heard(state, member)
    was_ready = member.state == "ready"
    if was_ready and replica.info == info and not (event.running or event.ended):
        return
    refused = replicas.accept(state, replica, event)
    if refused is not None:
        member.is_ordered = False
        restarts.failed(state, member, "refused", refused)
        return
    member.state = "ready"
    member.ready_ns = state.now_ns
    if member.drain_until_ns is not None:
        replicas.set_aside(state, replica)
    restarts.succeeded(state, member)
    reloads.member_ready(state, member)


def _unexpected(state: State, member: Member, incarnation: int) -> str | None:
    """Why a replica must not serve now.

    One that names the incarnation that is wanted needs no registration: it was launched once, and may have had
    another scheduler since. Of one that names none only a launch that was told from here is known.
    """
    replica_id = member.replica_id
    if incarnation and not (member.is_ordered and member.incarnation == incarnation):
        return _unwanted(replica_id, incarnation)
    is_known = bool(incarnation) or replica_id in state.replicas
    if not is_known or member.state == "pending":
        return f"{replica_id} has to register as loading, and to be told to launch, before it is Ready"
    return None


def _unwanted(replica_id: str, incarnation: int) -> str:
    return f"incarnation {incarnation} of {replica_id} is not the one that is wanted"


def _stranger(member: Member | None, replica_id: str, pool_id: str) -> str | None:
    """Why a replica must not take part at all."""
    if member is None:
        return f"pool {pool_id} has not ordered a replica {replica_id}"
    if member.pool.policy.pool_id != pool_id:
        return f"{replica_id} was ordered by pool {member.pool.policy.pool_id}, not by {pool_id}"
    return None


def _unready(state: State, event: ReplicaUnready) -> bool:
    member = state.pools.members.get(event.replica_id)
    if member is None:
        return False
    if event.replica_id in state.replicas:
        leases.heard(state, member)
        replicas.unready(state, event)
        if member.state in ("loading", "ready"):
            restarts.failed(state, member, event.kind, event.reason, event.stderr)
        else:
            restarts.noted(state, member, event.kind, event.reason, event.stderr)
    return True


def _lost(state: State, event: ReplicaLost) -> bool:
    """A connection ended: the first sign of a dead actor, though it may be the link alone that was cut.

    The order stands until the wait is over, so that a replica that registers again is taken.
    """
    member = state.pools.members.get(event.replica_id)
    if member is None:
        return False
    if event.replica_id in state.replicas:
        replicas.lost(state, event)
        if member.state != "pending":
            restarts.failed(state, member, "actor", event.reason)
    return True


def _faulted(state: State, event: ReplicaFaulted) -> bool:
    """A GPU or a driver told of an error: what runs may end, then the replica gets a new engine (ORCH-3038)."""
    member = state.pools.members.get(event.replica_id)
    if member is None:
        return True
    restarts.noted(state, member, event.kind, event.reason)
    if member.state == "ready":
        # One that drains already keeps to that, but is given no more time than any other with a fault.
        is_first = member.drain_until_ns is None
        drain_ms = min(member.pool.policy.drain_ms, FAULT_DRAIN_MS_MAX)
        members.drain(state, member, state.now_ns + drain_ms * NS_PER_MS, relaunch=True)
        if is_first:
            members.note(state, member, "drain_started", f"{event.reason}; launched again then", event.kind)
    return True
