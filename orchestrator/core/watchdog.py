"""What happens when a task's time is up (ORCH-3016, OC-CORE-1022).

Each live task has one wake-up, for whatever can time out in its state.
"""

from typing import Final

from contracts.tasks import Outcome
from orchestrator.core import attempts, dispatch, endings, failover, preemption, submissions, timeouts
from orchestrator.core.pools.records import POOLS_KEY
from orchestrator.core.records import NS_PER_MS, TaskRecord
from orchestrator.core.state import RETENTION_KEY, State

#: How often a task whose time is up is looked at while the replica that may run it is still awaited.
AWAITED_NS: Final = 100 * NS_PER_MS


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
    elif record.state == "queued":
        _wake_waiting(state, record)
    elif record.state == "running":
        at_ns, reason = timeouts.of_attempt(record)
        if at_ns <= state.now_ns:
            dispatch.stop(state, record, reason)
        else:
            state.timers.arm(record.task.task_id, at_ns)
    elif record.state == "stopping":
        attempts.stop_timed_out(state, record)


def _wake_waiting(state: State, record: TaskRecord) -> None:
    """A waiting task ends when its time is up; before that a slot may be taken for it."""
    if failover.is_awaited(state, record):
        # It may run, and be done in time.
        state.timers.arm(record.task.task_id, max(record.deadline_ns, state.now_ns + AWAITED_NS))
    elif record.deadline_ns <= state.now_ns:
        record.home.leave(record)
        error = failover.too_late(state, record)
        endings.end_unserved(state, record, Outcome("failed", tokens_out=record.resume_tokens, error=error))
    elif timeouts.of_waiting(record) <= state.now_ns:
        record.home.leave(record)
        endings.end_unserved(state, record, timeouts.waited_out(state, record))
    else:
        preemption.rescue(state, record)
        state.timers.arm(record.task.task_id, timeouts.of_waiting(record))
