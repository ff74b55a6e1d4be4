"""What happens when a task's time is up (ORCH-3016, OC-CORE-1022).

Each live task has one wake-up, for whatever can time out in its state.
"""

from contracts.errors import ErrorInfo
from contracts.tasks import Outcome
from orchestrator.core import attempts, submissions
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.state import RETENTION_KEY, State


def expire(state: State) -> None:
    """Act on every wake-up that is due; each ends its task or arms a later one."""
    while (key := state.timers.pop_due(state.now_ns)) is not None:
        if key != RETENTION_KEY:
            _wake(state, state.tasks[key])


def _wake(state: State, record: TaskRecord) -> None:
    if record.state == "measuring":
        submissions.measuring_timed_out(state, record)
    elif record.state == "queued":
        record.flow.discard(record)
        state.finish(record, Outcome("failed", error=_deadline_error(record)))
    elif record.state == "running":
        _watch(state, record)
    elif record.state == "stopping":
        attempts.stop_timed_out(state, record)


def _watch(state: State, record: TaskRecord) -> None:
    policy = record.home.policy
    wall_ns = record.started_ns + policy.wall_timeout_ms * NS_PER_MS
    idle_ns = record.progressed_ns + policy.idle_timeout_ms * NS_PER_MS
    if wall_ns <= state.now_ns:
        attempts.request_stop(state, record, "wall")
    elif idle_ns <= state.now_ns:
        attempts.request_stop(state, record, "idle")
    else:
        state.timers.arm(record.task.task_id, min(wall_ns, idle_ns))


def _deadline_error(record: TaskRecord) -> ErrorInfo:
    return ErrorInfo(
        code="DEADLINE_UNMET",
        message=f"not started within deadline_ms {record.task.deadline_ms}",
        engine=record.task.engine,
        pool_id=record.home.policy.pool_ids[0],
        retriable=False,
    )
