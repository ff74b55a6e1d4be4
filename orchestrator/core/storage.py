"""When nothing can be made durable: nothing is accepted, what runs goes on (ORCH-3051, OC-CTRL-2010).

Starts would wait at the shell for their records, so tasks wait here instead.
"""

from contracts.scheduling import JournalFailed
from contracts.tasks import Outcome
from orchestrator.core import dispatch, endings, refusals
from orchestrator.core.lifecycle import is_over
from orchestrator.core.records import TaskRecord
from orchestrator.core.state import State


def failed(state: State, event: JournalFailed) -> None:
    """Accept nothing until the journal works again, and give up what nobody was told of.

    The shell refuses the submissions of those tasks, so that their clients may send them again.
    """
    state.journal_down = event.reason or "unknown reason"
    for task_id in event.undone:
        record = state.tasks.get(task_id)
        if record is not None and record.state != "measuring" and not record.expired:
            _give_up(state, record)


def restored(state: State) -> None:
    """The journal works again: go on."""
    if state.journal_down:
        state.journal_down = ""
        for home in state.sets:
            state.want_dispatch(home)


def _give_up(state: State, record: TaskRecord) -> None:
    """End a task as if it had never been accepted; it is forgotten once its engine slot is free."""
    record.expired = True
    state.undone[record.task.task_id] = None
    if is_over(record):
        state.retention.discard(record)
        state.trim_due = True
        state.forget_if_over(record)
    elif record.state == "queued":
        record.home.leave(record)
        error = refusals.not_durable(state.journal_down)
        endings.end_unserved(state, record, Outcome("failed", tokens_out=record.resume_tokens, error=error))
    elif record.state == "running":
        dispatch.stop(state, record, "cancel")
    elif record.stop_reason in ("preempt", "drain"):
        # The stop is under way; it now means the end.
        record.stop_reason = "cancel"
