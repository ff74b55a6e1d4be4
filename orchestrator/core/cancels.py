"""Cancelling a task wherever it is (ORCH-2003, ORCH-3017, ORCH-3026, OC-CORE-1005).

The answer always follows the terminal outcome. A cancel that overtakes its task's admission admits
it and ends it at once: no error code says "canceled", a retriable refusal would make the client
send again what it gave up, and a remembered outcome keeps a repeated submission from running.
"""

from contracts.scheduling import AnswerCancel, CancelRequested
from contracts.tasks import Outcome
from orchestrator.core import dispatch, endings, failover
from orchestrator.core.lifecycle import is_over
from orchestrator.core.records import TaskRecord
from orchestrator.core.state import State
from orchestrator.core.submissions import answer, stop_measuring

CANCELED = Outcome("canceled", finish_reason="canceled")


def requested(state: State, event: CancelRequested) -> None:
    """Cancel a task, or wait with it for the stop that is under way."""
    record = state.tasks.get(event.task_id)
    if record is None or record.task.tenant != event.tenant:
        state.out.append(AnswerCancel("", event.request, found=False))
        return
    if is_over(record):
        state.out.append(AnswerCancel(record.home.policy.set_id, event.request, found=True))
        return
    record.cancels.append(event.request)
    if record.state == "measuring":
        stop_measuring(record)
        # What was forecast when it came is out of date by now.
        record.outlook = None
        answer(state, record)
        endings.end_unserved(state, record, CANCELED)
    elif failover.is_awaited(state, record):
        # Should it run all the same, it is to be stopped before anybody is told that it was.
        return
    elif record.state == "queued":
        end_waiting(state, record)
    elif record.state == "running":
        dispatch.stop(state, record, "cancel")
    elif record.stop_reason in ("preempt", "drain"):
        # The stop is under way; it now means the end.
        record.stop_reason = "cancel"
        state.changes.task(event.task_id)


def end_waiting(state: State, record: TaskRecord) -> None:
    """End a waiting task of which a cancel is pending, for instance because its replica is awaited no longer."""
    if record.state == "queued" and record.cancels:
        record.home.leave(record)
        endings.end_unserved(state, record, _canceled(record))


def _canceled(record: TaskRecord) -> Outcome:
    """A waiting task ends with what it delivered before it was preempted."""
    if not record.resume_tokens:
        return CANCELED
    return Outcome("canceled", tokens_out=record.resume_tokens, finish_reason="canceled")
