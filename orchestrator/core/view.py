"""What can be read of the scheduler's state; reading changes nothing."""

import msgspec
from msgspec import Struct

from contracts.api import TaskStatus
from contracts.tasks import ReplicaInfo
from orchestrator.core.records import NS_PER_MS, TaskRecord, round_ms
from orchestrator.core.state import State


class StartedView(Struct, frozen=True):
    """What a stream tells when its task runs (ORCH-3029). Position and prediction are those told at admission."""

    task_id: str
    attempt: int
    replica: ReplicaInfo
    queue_position: int
    predicted_start_ms: int
    queue_time_ns: int
    queue_depth: int
    time_budget_remaining_ms: int


def find(state: State, task_id: str, tenant: str) -> TaskRecord | None:
    """The record of a task, if it is this tenant's."""
    record = state.tasks.get(task_id)
    return record if record is not None and record.task.tenant == tenant else None


def status(state: State, now_ns: int, record: TaskRecord) -> TaskStatus:
    """State, position and outcome; a position only while it waits, a replica once it started."""
    task, replica, outcome = record.task, record.served_by, record.outcome
    position, predicted_ms = (
        record.home.forecast(record, max(now_ns, state.now_ns)) if record.state == "queued" else (None, None)
    )
    so_far = TaskStatus(
        task_id=task.task_id,
        state=record.state,
        engine=task.engine,
        model_ref=task.model_ref,
        priority=task.priority,
        queue_position=position,
        predicted_start_ms=predicted_ms,
        replica_id=replica.replica_id if replica else None,
        pool_id=replica.pool_id if replica else None,
        engine_version=replica.engine_version if replica else None,
        model_digest=replica.model_digest if replica else None,
        attempt=record.attempt,
        tokens_in=0,
        tokens_out=record.tokens_out,
        decode_ms=0,
        queue_time_ms=round_ms(record.queue_time_ns) if record.queue_time_ns is not None else None,
        labels=task.labels,
    )
    if outcome is None:
        return so_far
    return msgspec.structs.replace(
        so_far,
        tokens_in=outcome.tokens_in,
        tokens_out=outcome.tokens_out,
        decode_ms=outcome.decode_ms,
        first_token_ms=outcome.first_token_ms,
        finish_reason=outcome.finish_reason,
        error=outcome.error,
    )


def started(state: State, now_ns: int, record: TaskRecord) -> StartedView | None:
    """None for a task that never started."""
    told, replica, waited_ns = record.admission, record.served_by, record.queue_time_ns
    if told is None or replica is None or waited_ns is None:
        return None
    return StartedView(
        task_id=record.task.task_id,
        attempt=record.attempt,
        replica=replica,
        queue_position=told.queue_position,
        predicted_start_ms=told.predicted_start_ms,
        queue_time_ns=waited_ns,
        queue_depth=len(record.flow),
        time_budget_remaining_ms=max(0, record.deadline_ns - max(now_ns, state.now_ns)) // NS_PER_MS,
    )


def readiness(state: State) -> dict[str, str]:
    """Per pool: "ready", "loading" or "unavailable: <why>" (ORCH-3010)."""
    pools: dict[str, str] = {}
    for home in state.sets:
        for pool_id in home.policy.pool_ids:
            pools[pool_id] = f"unavailable: {home.pool_reasons.get(pool_id, 'no replica has come up yet')}"
    for replica in state.replicas.values():
        if replica.state == "ready" or (replica.state == "loading" and pools[replica.pool_id] != "ready"):
            pools[replica.pool_id] = replica.state
    return pools
