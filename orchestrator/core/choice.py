"""Which replica runs a task's next attempt (ORCH-3008, ORCH-3009, ORCH-3091)."""

from orchestrator.core.placement import Replica
from orchestrator.core.records import TaskRecord
from orchestrator.core.replica_set import ReplicaSet


def is_kept_apart(home: ReplicaSet, record: TaskRecord) -> bool:
    """Whether nothing but another suspect keeps a suspect from every replica of its side that has room for it."""
    if not record.crashes:
        return False
    has_room = False
    for replica in home.canaries.index_for(record.task.session_id).candidates():
        if replica.takes(record):
            return False
        has_room = has_room or replica.has_room(record.kv_tokens)
    return has_room


def choose(home: ReplicaSet, record: TaskRecord, now_ns: int) -> tuple[Replica, bool] | None:
    """(replica for the next attempt of a task, whether it still holds the session's KV); None if none suits now.

    The replica that served the session's last turn wins while it holds its KV (ORCH-3009). Else the least loaded
    one with room, on another node than an earlier attempt failed on and in a pool whose breaker is
    closed, if there is such a one. Two suspects are never placed together.
    """
    warm = home.warm_replica(record)
    if warm is not None and warm.takes(record) and _allowed(home, warm, record, now_ns):
        return warm, True
    index = home.canaries.index_for(record.task.session_id)
    first = index.least_loaded()
    if first is None:
        return None
    if not record.avoid and not home.breakers and first.takes(record):
        return first, False
    fallback: Replica | None = None
    for replica in index.candidates():
        if not replica.takes(record):
            continue
        info = replica.info
        elsewhere = info is None or info.node_id != record.avoid
        if elsewhere and _allowed(home, replica, record, now_ns):
            return replica, False
        fallback = fallback or replica
    return None if fallback is None else (fallback, False)


def _allowed(home: ReplicaSet, replica: Replica, record: TaskRecord, now_ns: int) -> bool:
    """Whether the breaker of the replica's pool lets a task of this class through."""
    return not home.breakers or home.breakers.allows(replica.pool_id, record.task.priority, now_ns)
