"""When nobody can serve a task now: the refusal, or the queue as a waiting room (ORCH-3018, OC-POOL-3012)."""

from contracts.errors import ErrorCode, ErrorInfo
from orchestrator.core.pools.records import Pool, Pools
from orchestrator.core.records import ceil_ms
from orchestrator.core.replica_set import OUTAGE_RETRY_MS_MIN, ReplicaSet
from orchestrator.core.state import State


def outage(state: State, home: ReplicaSet) -> ErrorInfo | None:
    """Why a set admits nothing now, with a retry hint; None while it does.

    It admits while a replica is Ready, and while it is a waiting room: after a recovery each set is one.
    """
    if home.closing:
        return moved_on(home, state.now_ns)
    if home.ready or is_awaited(state, home) or is_waiting_room(state, home):
        return None
    loading = len(home.loading)
    why = _last_reason(state, home)
    message = f"no replica of {', '.join(home.policy.pool_ids)} is ready, {loading} loading{why}"
    return _unserved(home, "POOL_UNREADY" if loading else "POOL_UNAVAILABLE", message, state.now_ns)


def moved_on(home: ReplicaSet, now_ns: int) -> ErrorInfo:
    """POOL_UNAVAILABLE for a set that its last pool left."""
    return _unserved(home, "POOL_UNAVAILABLE", home.closing or "no pool serves this model now", now_ns)


def stopped(home: ReplicaSet, replica_id: str, now_ns: int) -> ErrorInfo:
    """POOL_UNAVAILABLE for a running task whose replica's time was up, and that cannot go on elsewhere."""
    why = f" ({home.closing})" if home.closing else ""
    message = f"the pool was drained: the task was stopped on {replica_id} at the deadline{why}"
    return _unserved(home, "POOL_UNAVAILABLE", message, now_ns)


def _unserved(home: ReplicaSet, code: ErrorCode, message: str, now_ns: int) -> ErrorInfo:
    load_ms = 0 if home.ready else ceil_ms(home.load_remaining_ns(now_ns))
    retry_ms = max(OUTAGE_RETRY_MS_MIN, load_ms)
    return ErrorInfo(
        code=code,
        message=f"{message}; try again in {retry_ms} ms",
        engine=home.policy.engine,
        pool_id=home.policy.pools[0].pool_id,
        retriable=True,
        retry_after_ms=retry_ms,
    )


def is_awaited(state: State, home: ReplicaSet) -> bool:
    """Whether a set has no Ready replica only because the service has just been recovered: they are on their way back.

    Replicas live on without a scheduler, so nothing that is known of loading times applies to them.
    """
    return state.recovery_until_ns > 0 and not home.ready


def is_waiting_room(state: State, home: ReplicaSet) -> bool:
    """Whether tasks may wait in a set without a Ready replica, because they are what brings one.

    So for pools that are scaled to zero when idle, from the first task until a replica is Ready; not once
    launches fail.
    """
    for pool_id in home.policy.pool_ids:
        pool = state.pools.by_id.get(pool_id)
        if pool is not None and pool.active.home is home and comes_up_for_tasks(pool, state.pools):
            return True
    return False


def comes_up_for_tasks(pool: Pool, pools: Pools) -> bool:
    """Whether a pool without a Ready replica brings one up for a task that waits.

    An open breaker speaks against it only while replicas are there to close it.
    """
    return (
        pools.nodes_known
        and pool.scaling.replicas_min == 0
        and pool.scaling.replicas_max > 0
        and pool.drain_until_ns is None
        and not pool.drained
        and not (pool.breaker_open and pool.active.members)
        and not any(member.failures for member in pool.active.members.values())
    )


def _last_reason(state: State, home: ReplicaSet) -> str:
    """What is in the way of the managed pools of a set, as far as it is known."""
    for pool_id in home.policy.pool_ids:
        pool = state.pools.by_id.get(pool_id)
        if pool is None or pool.active.home is not home:
            continue
        for member in pool.active.members.values():
            if member.unplaced:
                return f" ({member.unplaced})"
        if pool.fault is not None:
            return f" ({pool.fault.kind}: {pool.fault.reason})"
    return ""
