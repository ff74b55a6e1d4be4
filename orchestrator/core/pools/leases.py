"""A replica that is not heard of is sent nothing more, then counts as gone (ORCH-3010, ORCH-3018).

A connection that stays open says nothing about an event loop that hangs or a network that drops packets.
"""

from orchestrator.core import replicas
from orchestrator.core.pools import members, restarts
from orchestrator.core.pools.records import Member
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.state import State


def heard(state: State, member: Member) -> None:
    """A replica is alive; one that had lapsed takes tasks again, unless it drains."""
    member.lease_ns = state.now_ns
    if not member.suspended:
        return
    member.suspended = False
    replica = members.up(state, member)
    if replica is not None and member.drain_until_ns is None:
        replicas.bring_back(state, replica)
    members.note(state, member, "lease_renewed", "it was heard of again")
    state.pools.touched = True


def next_due_ns(state: State) -> int | None:
    """When the next lease runs out, or the next replica counts as gone."""
    lease = state.pools.lease
    if lease is None:
        return None
    earliest_ns: int | None = None
    for member in state.pools.members.values():
        if member.replica_id not in state.replicas:
            continue
        lapses = member.state == "ready" and not member.suspended
        at_ns = member.lease_ns + (lease.ttl_ms if lapses else lease.lost_ms) * NS_PER_MS
        if earliest_ns is None or at_ns < earliest_ns:
            earliest_ns = at_ns
    return earliest_ns


def due(state: State) -> None:
    """Suspend who was not heard of for the lease's time, give up who was silent for longer."""
    lease = state.pools.lease
    if lease is None:
        return
    for member in list(state.pools.members.values()):
        if member.replica_id not in state.replicas:
            continue
        silent_ns = state.now_ns - member.lease_ns
        if silent_ns >= lease.lost_ms * NS_PER_MS:
            _lost(state, member, lease.lost_ms)
        elif silent_ns >= lease.ttl_ms * NS_PER_MS and member.state == "ready" and not member.suspended:
            _lapsed(state, member, lease.ttl_ms)


def _lapsed(state: State, member: Member, ttl_ms: int) -> None:
    # It served until now: if that was for long enough, old failures are not in a row with what comes.
    restarts.forgive(state, member)
    member.suspended = True
    replicas.set_aside(state, state.replicas[member.replica_id])
    members.note(state, member, "lease_lapsed", f"not heard of for {ttl_ms} ms; it is sent nothing new", "lease")
    state.pools.touched = True


def _lost(state: State, member: Member, lost_ms: int) -> None:
    reason = f"not heard of for {lost_ms} ms"
    replicas.refuse(state, state.replicas[member.replica_id], reason, "lease")
    member.is_ordered = False
    restarts.failed(state, member, "lease", reason)
