"""How many replicas a pool is to have (ORCH-3018).

Up by the predicted wait of its set, down by what runs there; each only after it was so for a while, and down only
where three quarters of the rest would do, so that a pool does not go up and down over the same load.
"""

from typing import Final

from contracts.pools import NotePool, PoolChange
from orchestrator.core import outlook
from orchestrator.core.pools import members
from orchestrator.core.pools.records import Member, Pool
from orchestrator.core.records import NS_PER_MS
from orchestrator.core.replica_set import ReplicaSet
from orchestrator.core.state import State

CHECK_INTERVAL_NS: Final = 1000 * NS_PER_MS


def next_due_ns(pool: Pool) -> int | None:
    """When the size of a pool is looked at next; None where it is fixed or the pool is not to serve."""
    return pool.scale_ns if _is_scaled(pool) else None


def due(state: State, pool: Pool) -> None:
    """Look at a pool's size: at once if it is to come up from nothing, else once a second."""
    if not _is_scaled(pool) or not state.pools.nodes_known:
        return
    home = pool.active.home
    if not pool.desired and home.waiting and not home.ready and not home.loading:
        _resize(state, pool, 1, "a task waits and the pool has no replica")
    if state.now_ns < pool.scale_ns:
        return
    pool.scale_ns = state.now_ns + CHECK_INTERVAL_NS
    if not _grown(state, pool):
        _shrink(state, pool)


def _is_scaled(pool: Pool) -> bool:
    scaling = pool.scaling
    return scaling.replicas_min < scaling.replicas_max and not pool.drained and pool.drain_until_ns is None


def wait_ahead_ns(state: State, pool: Pool) -> int:
    """How long a task at the end of the queue will wait once all replicas that are under way serve."""
    home = pool.active.home
    if not home.waiting:
        return 0
    wait_ns = outlook.wait_of(home, home.waiting_tokens, state.now_ns)
    slots = home.slots
    if not slots:
        # Replicas that come up are part of what is asked here; what is left is the queue's work for one slot.
        wait_ns, slots = max(1, wait_ns - home.load_remaining_ns(state.now_ns)), 1
    coming = sum([member.slots for member in pool.active.members.values() if _comes(member)])
    total = home.slots + coming
    return wait_ns * slots // total if total else wait_ns


def _comes(member: Member) -> bool:
    """Whether a replica is on its way to serve; one that keeps failing is not counted on."""
    return member.state != "ready" and member.drain_until_ns is None and not member.failures


def _grown(state: State, pool: Pool) -> bool:
    """Add replicas if the wait has been too long for long enough; whether the wait is too long."""
    scaling = pool.scaling
    wait_ns, target_ns = wait_ahead_ns(state, pool), max(1, scaling.target_wait_ms) * NS_PER_MS
    if wait_ns > target_ns:
        pool.idle_since_ns = 0
    if wait_ns <= target_ns or pool.desired >= scaling.replicas_max:
        pool.over_since_ns = 0
        return wait_ns > target_ns
    pool.over_since_ns = pool.over_since_ns or state.now_ns
    if state.now_ns - pool.over_since_ns >= scaling.up_after_ms * NS_PER_MS:
        wanted = -(-pool.desired * wait_ns // target_ns)
        wanted = max(pool.desired + 1, min(wanted, 2 * pool.desired))
        over_ms = wait_ns // NS_PER_MS
        why = f"predicted wait {over_ms} ms, wanted {scaling.target_wait_ms} ms"
        _resize(state, pool, min(wanted, scaling.replicas_max), why)
    return True


def _shrink(state: State, pool: Pool) -> None:
    """Take one replica away if the rest would have done for long enough."""
    scaling = pool.scaling
    if pool.desired <= scaling.replicas_min or not _rest_would_do(pool):
        pool.idle_since_ns = 0
        return
    pool.idle_since_ns = pool.idle_since_ns or state.now_ns
    if state.now_ns - pool.idle_since_ns >= scaling.down_after_ms * NS_PER_MS:
        busy = _busy(pool.active.home)
        _resize(state, pool, pool.desired - 1, f"{busy} attempts run, fewer replicas do")


def _rest_would_do(pool: Pool) -> bool:
    home = pool.active.home
    if home.places_taken:
        return False
    busy = _busy(home)
    if not busy:
        return True
    rest = home.slots - pool.policy.slots
    return 4 * busy <= 3 * rest


def _busy(home: ReplicaSet) -> int:
    busy = home.slots - home.free_slots
    for replica in home.aside.values():
        busy += len(replica.busy)
    return busy


def _resize(state: State, pool: Pool, desired: int, why: str) -> None:
    change: PoolChange = "scaled_up" if desired > pool.desired else "scaled_down"
    told = f"{pool.desired} to {desired} replicas: {why}"
    pool.desired = desired
    pool.over_since_ns = pool.idle_since_ns = 0
    state.out.append(NotePool(pool.active.home.policy.set_id, pool.policy.pool_id, change, told))
    members.reconcile(state, pool)
    state.pools.touched = True
