"""What happens when a task comes and the queue is full (ORCH-3005, OC-CORE-1002).

The policy is that of the arriving task's class. Either the arrival is refused, or a waiting task
loses its place to it: then the number of waiting tasks does not change, so the bounds hold.
Tasks that have started before, or whose prompt is being measured, never lose their place.
"""

from contracts.errors import ErrorCode, ErrorInfo, PolicyLabel
from orchestrator.core.policies import Flow
from orchestrator.core.records import TaskRecord
from orchestrator.core.replica_set import ReplicaSet


def resolve(home: ReplicaSet, flow: Flow) -> tuple[TaskRecord | None, ErrorInfo]:
    """(task that gives up its place, error for it), or (None, error for the arrival)."""
    policy = flow.policy.full_policy
    if policy == "drop-lru":
        return flow.oldest(), full_error(home, "QUEUE_FULL_DROP_LRU", policy)
    if policy == "shed-low-priority":
        # A lower class's place is of no use while the arrival's own class is at its bound.
        victim = None if home.is_class_full(flow) else _lowest_newest(home, flow)
        return victim, full_error(home, "ADMISSION_REJECT", policy)
    return None, full_error(home, "ADMISSION_REJECT", policy)


def _lowest_newest(home: ReplicaSet, flow: Flow) -> TaskRecord | None:
    for lower in reversed(home.flows):
        if lower is flow:
            return None
        newest = lower.newest()
        if newest is not None:
            return newest
    return None


def full_error(home: ReplicaSet, code: ErrorCode, label: PolicyLabel) -> ErrorInfo:
    """The 429 of a full queue, with the time until a place is expected to be free."""
    retry_ms = home.retry_after_ms()
    return ErrorInfo(
        code=code,
        message=f"the queue is full, {home.waiting} tasks wait ({label}); try again in {retry_ms} ms",
        engine=home.policy.engine,
        pool_id=home.policy.pool_ids[0],
        retriable=True,
        retry_after_ms=retry_ms,
        policy_label=label,
    )
