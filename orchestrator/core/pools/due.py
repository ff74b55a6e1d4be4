"""What about pools becomes due with time, and the one timer for all of it."""

from typing import Final

from orchestrator.core import attempts
from orchestrator.core.pools import drains, leases, members, placements, reloads, restarts, scaling
from orchestrator.core.pools.records import POOLS_KEY, Member
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.state import State

#: How long a drained replica's stops may go unanswered before it is retired all the same.
STOP_GRACE_NS: Final = 3000 * NS_PER_MS
#: How often one step looks again because what it did made something else due; the rest waits for the timer.
ROUNDS_MAX: Final = 8
#: The least time until the timer: what is due at once was dealt with in the step.
TIMER_NS_MIN: Final = NS_PER_MS


def arm(state: State) -> None:
    """Something about pools changed: before the step ends, act on what is due and set the timer anew."""
    state.pools.touched = True


def settle(state: State) -> None:
    """Act on what is due, and on what that makes due; then set the timer for the rest."""
    pools = state.pools
    if not pools.touched:
        _watch(state)
        # Else the timer is right as it is.
        if not state.pools.touched:
            return
    for _ in range(ROUNDS_MAX):
        if not pools.touched:
            break
        pools.touched = False
        expire(state)
    pools.touched = False
    pools.watched = _is_watched(state)
    at_ns = next_due_ns(state)
    if at_ns is None:
        state.timers.disarm(POOLS_KEY)
    else:
        state.timers.arm(POOLS_KEY, max(at_ns, state.now_ns + TIMER_NS_MIN))


def expire(state: State) -> None:
    """Act on everything about pools that is due now."""
    leases.due(state)
    placements.due(state)
    _watch(state)
    placements.retry(state)
    for pool in state.pools.by_id.values():
        scaling.due(state, pool)
        restarts.due(state, pool)


def next_due_ns(state: State) -> int | None:
    """The earliest instant at which something about pools is due; None: nothing is."""
    draining = [member for member in state.pools.draining.values() if member.replica_id not in state.awaited]
    found = [member.drain_until_ns for member in draining]
    found.append(leases.next_due_ns(state))
    found.append(placements.next_due_ns(state))
    for pool in state.pools.by_id.values():
        found.append(restarts.next_due_ns(pool))
        found.append(scaling.next_due_ns(pool) if state.pools.nodes_known else None)
        found.append(reloads.next_due_ns(pool))
        found.append(drains.next_due_ns(state, pool))
    return min([at_ns for at_ns in found if at_ns is not None], default=None)


def _is_watched(state: State) -> bool:
    """Whether the end of any task may be what a drain or a reload waits for."""
    pools = state.pools
    return bool(pools.draining) or any(
        pool.drain_until_ns is not None or bool(pool.outgoing) for pool in pools.by_id.values()
    )


def _watch(state: State) -> None:
    """Go on with drains and reloads, as far as they have come."""
    for member in list(state.pools.draining.values()):
        _drain(state, member)
    for pool in state.pools.by_id.values():
        reloads.due(state, pool)
        drains.due(state, pool)


def _drain(state: State, member: Member) -> None:
    """One replica that drains: over when nothing runs on it, or when its time is up (ORCH-3038)."""
    until_ns = member.drain_until_ns
    replica = members.up(state, member)
    if member.replica_id in state.awaited:
        return
    if replica is None or not replica.busy or until_ns is None:
        _drained(state, member)
    elif until_ns > state.now_ns:
        return
    elif member.is_stopping:
        _drained(state, member)
    else:
        member.is_stopping = True
        member.drain_until_ns = state.now_ns + STOP_GRACE_NS
        attempts.stop_for_drain(state, replica)
        state.pools.touched = True


def _drained(state: State, member: Member) -> None:
    if member.relaunch:
        restarts.relaunch(state, member)
    else:
        members.retire(state, member, "it is drained")
