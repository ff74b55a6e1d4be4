"""What becomes of a task whose attempt was stopped: it ends as the stop was meant, or goes on elsewhere."""

from contracts.errors import ErrorInfo
from contracts.scheduling import AttemptEnded, StopReason
from contracts.tasks import Outcome
from orchestrator.core import endings, failover, outages, preemption, timeouts
from orchestrator.core.pools import generations
from orchestrator.core.records import TaskRecord
from orchestrator.core.state import State


def stopped(state: State, record: TaskRecord, event: AttemptEnded, late_ns: int | None = None) -> None:
    """A stopped attempt is over: its task ends as the stop was meant, or waits again if it was preempted."""
    reason = record.stop_reason
    assert reason is not None, f"task {record.task.task_id} is stopped for nothing"
    if reason == "preempt":
        preemption.preempted(state, record)
        return
    if reason == "drain":
        _moved(state, record, event)
        return
    endings.end_served(state, record, event, _meant(record, reason, event), late_ns)


def unheard(state: State, record: TaskRecord) -> None:
    """The last attempt of a waiting task was to stop before a recovery, and is not there: the stop counts as done."""
    reason, record.stop_reason = record.stop_reason, None
    assert reason is not None, f"task {record.task.task_id} is stopped for nothing"
    record.over_attempt = record.attempt
    state.changes.task(record.task.task_id)
    if reason == "drain":
        record.moves += 1
    elif reason != "preempt":
        record.home.leave(record)
        endings.end_unserved(state, record, _meant(record, reason, endings.last_heard(record)))


def _meant(record: TaskRecord, reason: StopReason, event: AttemptEnded) -> Outcome:
    """The outcome of a task that was stopped for that, with what the attempt's report says of it."""
    if reason == "cancel":
        return endings.outcome_of(event, "canceled", finish_reason="canceled")
    if reason == "diverged":
        return endings.outcome_of(event, "failed", error=failover.diverged(record))
    error = ErrorInfo(
        code="DECODE_TIMEOUT",
        message=f"stopped by the {reason} timeout of {timeouts.timeout_ms(record, reason)} ms",
        retriable=True,
    )
    return endings.outcome_of(event, "failed", error=endings.failure(record, error))


def _moved(state: State, record: TaskRecord, event: AttemptEnded) -> None:
    """An attempt whose replica's time was up has stopped: its task goes on elsewhere, or ends for want of a place."""
    home = record.home
    # Only the replica knows that nothing was delivered: progress lags behind the stream.
    is_untouched = event.replica_id != "" and not record.delivered_tokens
    if (record.determinism == "strict" or is_untouched) and generations.has_hope(state, home):
        record.moves += 1
        preemption.wait_again(state, record, "drain")
        return
    replica_id = record.served_by.replica_id if record.served_by is not None else ""
    error = endings.failure(record, outages.stopped(home, replica_id, state.now_ns))
    endings.end_served(state, record, event, endings.outcome_of(event, "failed", error=error))
