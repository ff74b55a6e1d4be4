"""The two exchangeable decisions of a dispatch: which flow is next, and which task within it.

A flow is a group of tasks that wait in one line; in this version one per priority class. `Flow` is
ordering (FIFO here), `Fairness` chooses between flows (strict priority here). Both see only
counts and expected tokens, so that weighted and deadline-driven ones fit behind the same lines.
"""

from collections.abc import Sequence
from typing import Protocol

from contracts.api import Priority
from contracts.policies import QueuePolicy
from orchestrator.core.records import TaskRecord


class Flow(Protocol):
    """Waiting tasks of one flow, in the order in which they will start.

    `reserved` counts places promised to tasks whose prompts are being measured; `tokens` sums
    the expected output tokens of the waiting ones.
    """

    priority: Priority
    policy: QueuePolicy
    reserved: int
    tokens: int

    def __len__(self) -> int: ...

    def push(self, record: TaskRecord) -> None:
        """Add a newly admitted task."""

    def give_back(self, record: TaskRecord) -> None:
        """Add a task whose attempt failed; it goes before all that never started."""

    def pop(self) -> TaskRecord:
        """Take the task that starts next. Raises `IndexError` when the flow is empty."""

    def discard(self, record: TaskRecord) -> None:
        """Take a waiting task out of the line."""

    def position(self, record: TaskRecord) -> int:
        """How many tasks of this flow start before a waiting one."""

    def oldest(self) -> TaskRecord | None:
        """The task that waits longest, of those that never started."""

    def newest(self) -> TaskRecord | None:
        """The task that came last, of those that never started."""


class Fairness(Protocol):
    """Chooses between flows."""

    def select(self, flows: Sequence[Flow]) -> Flow | None:
        """The flow whose first task starts next; None when all are empty."""

    def ahead(self, flows: Sequence[Flow], flow: Flow) -> tuple[int, int]:
        """(tasks, expected tokens) of the other flows that start before the first task of `flow`."""


class StrictPriority:
    """A higher class always goes first; `flows` come highest first (OC-CORE-1004)."""

    def select(self, flows: Sequence[Flow]) -> Flow | None:
        for flow in flows:
            if len(flow):
                return flow
        return None

    def ahead(self, flows: Sequence[Flow], flow: Flow) -> tuple[int, int]:
        tasks = tokens = 0
        for higher in flows:
            if higher is flow:
                break
            tasks += len(higher)
            tokens += higher.tokens
        return tasks, tokens
