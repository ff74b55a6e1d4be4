"""What happens when a task's time is up (ORCH-3016, OC-CORE-1022).

Each live task has one wake-up, for whatever can time out in its state.
"""

from contracts.tasks import Outcome
from orchestrator.core import attempts, dispatch, endings, preemption, submissions
from orchestrator.core.pools.records import POOLS_KEY
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.state import RETENTION_KEY, State


def expire(state: State) -> None:
    """Act on every wake-up that is due; each ends its task or arms a later one."""
    while (key := state.timers.pop_due(state.now_ns)) is not None:
        if key == RETENTION_KEY:
            state.trim_due = True
        elif key == POOLS_KEY:
            state.pools.touched = True
        else:
            _wake(state, state.tasks[key])


def _wake(state: State, record: TaskRecord) -> None:
    if record.state == "measuring":
        submissions.measuring_timed_out(state, record)
    elif record.state == "queued" and state.now_ns < record.deadline_ns:
        preemption.rescue(state, record)
        state.timers.arm(record.task.task_id, record.deadline_ns)
    elif record.state == "queued":
        record.home.leave(record)
        outcome = Outcome("failed", tokens_out=record.resume_tokens, error=dispatch.too_late(record))
        endings.end_unserved(state, record, outcome)
    elif record.state == "running":
        _watch(state, record)
    elif record.state == "stopping":
        attempts.stop_timed_out(state, record)


def _watch(state: State, record: TaskRecord) -> None:
    policy = record.home.policy
    wall_ns = record.started_ns + policy.wall_timeout_ms * NS_PER_MS
    idle_ns = record.progressed_ns + policy.idle_timeout_ms * NS_PER_MS
    if wall_ns <= state.now_ns:
        dispatch.stop(state, record, "wall")
    elif idle_ns <= state.now_ns:
        dispatch.stop(state, record, "idle")
    else:
        state.timers.arm(record.task.task_id, min(wall_ns, idle_ns))
