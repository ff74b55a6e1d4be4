"""What became of every task, one row each, in columns: a million tasks must fit."""

from array import array
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from msgspec import Struct

from contracts.errors import ErrorInfo
from orchestrator.simulation.flows import Flows
from orchestrator.simulation.job import Job

#: Probabilities are kept in millionths.
PPM: Final = 1_000_000


class TaskRow(Struct, frozen=True):
    """One task's story. Instants are nanoseconds of the world, -1 where it has not come to that.

    `outcome` is "finished", "canceled", or "refused", "failed" or "dropped" with the error's code.
    `earliest_deadline_ms` is the smallest deadline that the scheduler said it would have accepted, when it
    refused the task's own; else 0.
    """

    task_id: str
    priority: str
    tenant: str
    arrived_ns: int
    deadline_ns: int
    admitted_ns: int
    started_ns: int
    first_ns: int
    ended_ns: int
    outcome: str
    predicted_ms: int
    probability: float
    prompt_tokens: int
    output_tokens: int
    tries: int
    attempts: int
    preemptions: int
    earliest_deadline_ms: int

    @property
    def on_time(self) -> bool:
        """Whether it finished by its client's deadline."""
        return self.outcome == "finished" and self.ended_ns <= self.deadline_ns


class Lost(Struct, frozen=True):
    """Attempts that were lost with a replica or its link, those that replicas came back with and went on, and how often
    the scheduler was started anew."""

    attempts: int
    adopted: int
    recoveries: int


class Column(IntEnum):
    """Where a number stands in a row."""

    WORKLOAD = 0
    NUMBER = 1
    FLOW = 2
    OUTCOME = 3
    ARRIVED_NS = 4
    DEADLINE_NS = 5
    ADMITTED_NS = 6
    STARTED_NS = 7
    FIRST_NS = 8
    ENDED_NS = 9
    PREDICTED_MS = 10
    PROBABILITY_PPM = 11
    PROMPT_TOKENS = 12
    OUTPUT_TOKENS = 13
    TRIES = 14
    ATTEMPTS = 15
    PREEMPTIONS = 16
    EARLIEST_MS = 17


WIDTH: Final = len(Column)


class Ledger:
    """Rows of ended tasks, in the order of their ends, and counts of what happens more than once a task.

    Tasks that arrived before `count_from_ns` have rows; refusals and promises made to them are not counted.
    """

    def __init__(self, flows: Flows, count_from_ns: int) -> None:
        self.flows = flows
        self.count_from_ns = count_from_ns
        self.outcomes: list[str] = []
        self.refusals: dict[str, int] = {}
        self.promises_kept = 0
        self.promises_broken = 0
        self.replays = 0
        self.retried = 0
        #: Attempts that were lost, and those that a replica came back with, to a scheduler that lived on or a new one.
        self.lost = 0
        self.adopted = 0
        self.workload_names: list[str] = []
        #: All rows one after the other: one call adds one, and a column is a slice.
        self._cells = array("q")
        self._codes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._cells) // WIDTH

    def column(self, column: Column) -> "array[int]":
        """One number of every row."""
        return self._cells[column::WIDTH]

    def columns(self, *columns: Column) -> Iterator[tuple[int, ...]]:
        """A few numbers of every row that counts."""
        arrived = self.column(Column.ARRIVED_NS)
        rows = zip(*(self.column(column) for column in columns), strict=True)
        from_ns = self.count_from_ns
        return (row for row, arrived_ns in zip(rows, arrived, strict=True) if arrived_ns >= from_ns)

    def close(self, job: Job, ended_ns: int, outcome: str) -> None:
        """A task has ended."""
        code = self._codes.get(outcome)
        if code is None:
            code = self._codes[outcome] = len(self.outcomes)
            self.outcomes.append(outcome)
        self._cells.extend(
            (
                job.workload.index,
                job.number,
                job.flow.index,
                code,
                job.arrived_ns,
                job.deadline_ns,
                job.admitted_ns,
                job.started_ns,
                job.first_ns,
                ended_ns,
                job.predicted_ms,
                int(job.probability * PPM),
                job.prompt_tokens,
                job.output_tokens,
                job.tries,
                job.attempts,
                job.preemptions,
                job.earliest_ms,
            )
        )

    def refused(self, job: Job, error: ErrorInfo) -> None:
        """A submission was refused; the task may be submitted again."""
        if job.arrived_ns >= self.count_from_ns:
            self.refusals[error.code] = self.refusals.get(error.code, 0) + 1

    def promise(self, job: Job, *, kept: bool) -> None:
        """A client came back when it was told to after a 429, and was admitted or not."""
        if job.arrived_ns >= self.count_from_ns:
            if kept:
                self.promises_kept += 1
            else:
                self.promises_broken += 1

    def row(self, index: int) -> TaskRow:
        """One task's story."""
        cells = self._cells[index * WIDTH : (index + 1) * WIDTH]
        meter = self.flows.meters[cells[Column.FLOW]]
        return TaskRow(
            task_id=f"{self.workload_names[cells[Column.WORKLOAD]]}.{cells[Column.NUMBER]}",
            priority=meter.priority,
            tenant=meter.tenant,
            arrived_ns=cells[Column.ARRIVED_NS],
            deadline_ns=cells[Column.DEADLINE_NS],
            admitted_ns=cells[Column.ADMITTED_NS],
            started_ns=cells[Column.STARTED_NS],
            first_ns=cells[Column.FIRST_NS],
            ended_ns=cells[Column.ENDED_NS],
            outcome=self.outcomes[cells[Column.OUTCOME]],
            predicted_ms=cells[Column.PREDICTED_MS],
            probability=cells[Column.PROBABILITY_PPM] / PPM,
            prompt_tokens=cells[Column.PROMPT_TOKENS],
            output_tokens=cells[Column.OUTPUT_TOKENS],
            tries=cells[Column.TRIES],
            attempts=cells[Column.ATTEMPTS],
            preemptions=cells[Column.PREEMPTIONS],
            earliest_deadline_ms=cells[Column.EARLIEST_MS],
        )

    def rows(self) -> Iterator[TaskRow]:
        """All stories, in the order of their ends."""
        return map(self.row, range(len(self)))

    def find(self, task_id: str) -> TaskRow | None:
        """The story of one task; None while it has not ended."""
        name, _, number = task_id.rpartition(".")
        if name in self.workload_names and number.isdigit():
            wanted = (self.workload_names.index(name), int(number))
            workloads, numbers = self.column(Column.WORKLOAD), self.column(Column.NUMBER)
            for index in range(len(self) - 1, -1, -1):
                if (workloads[index], numbers[index]) == wanted:
                    return self.row(index)
        return None
