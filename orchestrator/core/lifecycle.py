"""The states of a task and the only ways between them (ORCH-3017, ORCH-3024).

Two rules: a task has exactly one state, and it leaves an end state never. What is not in the
table is a bug in the caller, so it raises, and nothing has changed.
"""

from typing import Final

from contracts.api import TaskState
from orchestrator.core.records import TaskRecord

#: From each state, where a task may go. `queued` follows `running` when an attempt was lost or is tried again,
#: `stopping` when it was preempted or moved, and `running` follows `queued` also when a lost attempt is found to run
#: all the same; `canceled` follows `measuring` when the cancel overtakes the admission.
NEXT: Final[dict[TaskState, tuple[TaskState, ...]]] = {
    "measuring": ("queued", "canceled"),
    "queued": ("running", "failed", "canceled", "dropped"),
    "running": ("queued", "stopping", "finished", "failed"),
    "stopping": ("queued", "finished", "failed", "canceled"),
    "finished": (),
    "failed": (),
    "canceled": (),
    "dropped": (),
}

#: States in which an attempt occupies a replica and its reports count.
ON_REPLICA: Final[tuple[TaskState, ...]] = ("running", "stopping")


class IllegalTransition(Exception):
    """A transition that the table does not hold was asked for."""


def advance(record: TaskRecord, to: TaskState) -> None:
    """Move a task to state `to`. Raises `IllegalTransition`, and then changes nothing."""
    if to not in NEXT[record.state]:
        raise IllegalTransition(f"task {record.task.task_id}: {record.state} -> {to}")
    record.state = to


def is_over(record: TaskRecord) -> bool:
    """Whether the task has reached its terminal outcome."""
    return not NEXT[record.state]
